import type { Duplex } from 'node:stream';
import { ApiError } from '../api/api-error.ts';
import { systemClock } from '../base/clock.ts';
import { openConsole } from './console-connection.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';

/** Ctrl-], as in telnet and virsh. */
const LEAVE_BYTE = 0x1d;

export interface ConsoleOptions {
  /** How long output is still shown when piped input has ended. */
  readonly lingerMs: number;
}

/** Joins the serial console until Ctrl-], the end of piped input, or the end of the VM. */
export async function joinConsole(name: string, { lingerMs }: ConsoleOptions, out: Output): Promise<number> {
  const console = await openConsole(name);
  const { stdin, stdout } = process;
  const isTerminal = stdin.isTTY === true;
  if (isTerminal) out.progress(`console of ${name}; Ctrl-] leaves it\n`);
  const { promise: left, resolve: leave, reject: fail } = Promise.withResolvers<void>();
  console.once('close', leave);
  // A keeper that is gone breaks the connection; a host says why it closes it.
  console.on('error', (error) => (error instanceof ApiError ? fail(error) : leave()));
  using interruption = new Interruption();
  if (isTerminal) stdin.setRawMode(true);
  try {
    console.on('data', (bytes: Uint8Array) => show(bytes, { console, out }));
    stdin.on('data', (bytes: Buffer) => {
      const end = isTerminal ? bytes.indexOf(LEAVE_BYTE) : -1;
      type(end === -1 ? bytes : bytes.subarray(0, end), console);
      if (end !== -1) leave();
    });
    stdin.once('end', () => systemClock.after(lingerMs, leave));
    await interruption.orInterrupted(left);
  } finally {
    if (isTerminal) stdin.setRawMode(false);
    stdin.destroy();
    console.destroy();
    if (isTerminal) stdout.write('\r\n');
  }
  return EXIT_CODES.ok.code;
}

/** What the guest said goes out as it is; with `--json` as lines of `{"output": "…"}`. */
function show(bytes: Uint8Array, { console, out }: { console: Duplex; out: Output }): void {
  if (out.json) {
    out.result({ output: Buffer.from(bytes).toString() }, () => '');
    return;
  }
  if (process.stdout.write(bytes)) return;
  console.pause();
  process.stdout.once('drain', () => console.resume());
}

function type(bytes: Uint8Array, console: Duplex): void {
  if (bytes.length === 0 || console.write(bytes)) return;
  process.stdin.pause();
  console.once('drain', () => process.stdin.resume());
}
