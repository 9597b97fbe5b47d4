import type { ControlClient } from '../control/control-client.ts';
import type { VmEvent } from '../control/vm-event.ts';
import { EXIT_CODES } from './exit-codes.ts';
import type { Output } from './output.ts';
import { connectTo } from './vm-connection.ts';

/** A planned switch: the shadow goes on, the old primary is ended, nothing is lost. */
export async function promote(name: string, out: Output): Promise<number> {
  using control = await connectTo(name);
  const before = (await eventsAfter(control, 0)).at(-1)?.seq ?? 0;
  out.progress(`promoting the shadow of ${name}`);
  await control.promote();
  const events = await eventsAfter(control, before);
  const moved = events.find(({ kind }) => kind === 'moved');
  if (moved !== undefined) {
    const { host, promoteMs } = moved.facts;
    out.result({ name, primary: null, host, promoteMs }, () => `${name} goes on on ${host}`);
    return EXIT_CODES.ok.code;
  }
  const { primary } = await control.status();
  // The figures in the status are of all promotions so far.
  const promoted = events.find(({ kind }) => kind === 'promoted');
  const { promoteMs, outageMs } = promoted?.facts ?? {};
  out.result({ name, primary, promoteMs, outageMs }, () => `${name} goes on in process ${primary?.pid}`);
  return EXIT_CODES.ok.code;
}

async function eventsAfter(control: ControlClient, since: number): Promise<VmEvent[]> {
  const events: VmEvent[] = [];
  for await (const event of control.events({ since, follow: false })) events.push(event);
  return events;
}
