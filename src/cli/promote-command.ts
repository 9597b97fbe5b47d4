import { EXIT_CODES } from './exit-codes.ts';
import type { Output } from './output.ts';
import { connectTo } from './vm-connection.ts';

/** A planned switch: the shadow goes on, the old primary is ended, nothing is lost. */
export async function promote(name: string, out: Output): Promise<number> {
  using control = await connectTo(name);
  out.progress(`promoting the shadow of ${name}`);
  await control.promote();
  const { primary, promoteMs, outageMs } = await control.status();
  const result = { name, primary, promoteMs: promoteMs.max, outageMs: outageMs.max };
  out.result(result, () => `${name} goes on in process ${primary?.pid}`);
  return EXIT_CODES.ok.code;
}
