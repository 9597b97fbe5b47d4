import { accessSync, constants, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseDocument } from 'yaml';
import type { DemoGuest } from '../../guest/build.ts';
import { messageOf } from '../base/errors.ts';
import { CliError } from './cli-error.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';

const TEMPLATE = fileURLToPath(new URL('../../examples/redis.yaml', import.meta.url));

/** Builds the demo guest and, if asked to, writes a specification that runs it. */
export async function buildGuest({ spec }: { spec?: string }, out: Output): Promise<number> {
  if (spec !== undefined) refuseUnwritable(spec);
  const { ensureDemoGuest } = await import('../../guest/build.ts');
  using interruption = new Interruption();
  const guest = await ensureDemoGuest({
    onProgress: (step) => out.progress(step),
    signal: interruption.signal,
  });
  if (spec !== undefined)
    writeFileSync(spec, demoSpec(guest, readFileSync(TEMPLATE, 'utf8')), { flag: 'wx' });
  out.result({ ...guest, ...(spec !== undefined && { spec }) }, () =>
    [
      `kernel   ${guest.kernel}  (Linux ${guest.kernelRelease})`,
      `initrd   ${guest.initrd}  (Redis ${guest.redisVersion})`,
      ...(spec === undefined ? [] : [`spec     ${spec}`, '', `Start it with: understudy run ${spec}`]),
    ].join('\n'),
  );
  return EXIT_CODES.ok.code;
}

/** Before the guest is built, which takes a while. */
function refuseUnwritable(path: string): void {
  if (existsSync(path)) {
    throw new CliError('CLI_FILE_EXISTS', `${path} exists already`, {
      hint: 'Choose another file, or remove it first.',
      facts: { path },
    });
  }
  try {
    accessSync(`${dirname(path)}/`, constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw new CliError('CLI_USAGE', `${path} cannot be written: ${messageOf(cause)}`, {
      hint: 'Give a file in a folder that exists and that you may write to.',
      facts: { path },
      cause,
    });
  }
}

/** The example with the guest's files, its comments kept. */
export function demoSpec(
  { kernel, initrd, cmdline }: Pick<DemoGuest, 'kernel' | 'initrd' | 'cmdline'>,
  template: string,
): string {
  const document = parseDocument(template);
  const network = String(document.getIn(['boot', 'cmdline'])).match(/\bus\.\S+/g) ?? [];
  document.setIn(['boot', 'kernel'], kernel);
  document.setIn(['boot', 'initrd'], initrd);
  document.setIn(['boot', 'cmdline'], [cmdline, ...network].join(' '));
  return document.toString({ lineWidth: 0 });
}
