import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { GuestError } from './guest-error.ts';

const OUTPUT_BYTES_MAX = 16 * 1024 * 1024;
const DEADLINE_MS = 10 * 60 * 1000;

/** Debian packages that bring the tools; what is missing on a machine without them. */
const PACKAGE_OF = { 'apt-get': 'apt', 'dpkg-deb': 'dpkg', gcc: 'gcc libc6-dev' } as const;
type HostTool = keyof typeof PACKAGE_OF;

type ToolOutcome =
  | { readonly kind: 'done'; readonly stdout: string }
  | { readonly kind: 'failed'; readonly stderr: string };

/**
 * Runs one of the host's programs to its end, ten minutes at most. That it fails is for the caller to judge.
 * @throws GuestError GUEST_TOOL_MISSING if it is not installed; the signal's reason, once the program has ended.
 */
export async function runTool(
  tool: HostTool,
  args: readonly string[],
  { cwd, signal }: { cwd?: string; signal?: AbortSignal | undefined } = {},
): Promise<ToolOutcome> {
  try {
    const { stdout } = await promisify(execFile)(tool, args, {
      cwd,
      signal,
      env: { ...process.env, LC_ALL: 'C' },
      maxBuffer: OUTPUT_BYTES_MAX,
      timeout: DEADLINE_MS,
    });
    return { kind: 'done', stdout };
  } catch (cause) {
    signal?.throwIfAborted();
    const { code, stderr, message } = cause as NodeJS.ErrnoException & { stderr?: string };
    if (code === 'ENOENT') {
      throw new GuestError('GUEST_TOOL_MISSING', `${tool} is not installed`, {
        hint: `Install it with: apt-get install ${PACKAGE_OF[tool]}`,
        facts: { tool },
        cause,
      });
    }
    return { kind: 'failed', stderr: stderr?.trim() || message };
  }
}
