import { systemClock as clock } from '../base/clock.ts';
import { type EvacuationReport, evacuate, type Lodger, lodgers } from '../site/evacuation.ts';
import { beginMaintenance, endMaintenance, maintenanceOf } from '../site/maintenance.ts';
import { CliError } from './cli-error.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import { type Output, table } from './output.ts';

/** Nothing more is placed on this host, and what is there leaves. What an interruption left is done by the next one. */
export async function maintenanceOn(
  { force, timeoutMs }: { force: boolean; timeoutMs: number },
  out: Output,
): Promise<number> {
  using interruption = new Interruption();
  const { sinceMs } = beginMaintenance({ sinceMs: clock.wallMs() });
  out.progress('this host takes no more VMs and shadows');
  const report = await evacuate({
    ...{ clock, force, timeoutMs, signal: interruption.signal },
    onProgress: (step, detail) => out.progress(step, detail),
  }).catch((thrown) => {
    throw thrown instanceof CliError && thrown.code === 'CLI_INTERRUPTED' ? stays(thrown) : thrown;
  });
  out.result({ maintenance: true, sinceMs, ...report }, () => reportText(report));
  return report.left.length === 0 ? EXIT_CODES.ok.code : EXIT_CODES.failed.code;
}

/** What Ctrl-C does not take back. */
function stays(interruption: CliError): CliError {
  return new CliError('CLI_INTERRUPTED', interruption.message, {
    hint: 'This host stays in maintenance. `understudy maintenance on` goes on emptying it, `understudy maintenance off` ends that.',
    facts: interruption.facts,
    cause: interruption,
  });
}

/** VMs that look for a place for their shadow find this host again by themselves. */
export function maintenanceOff(out: Output): number {
  const changed = endMaintenance();
  out.result({ maintenance: false, changed }, () =>
    changed ? 'this host takes VMs and shadows again' : 'this host was not in maintenance',
  );
  return EXIT_CODES.ok.code;
}

export async function maintenanceStatus(out: Output): Promise<number> {
  const maintenance = maintenanceOf();
  const here = await lodgers(clock);
  const facts = { maintenance: maintenance !== undefined, sinceMs: maintenance?.sinceMs ?? null };
  out.result({ ...facts, here: here.map(({ name, kind }) => ({ name, kind })) }, () =>
    statusText(maintenance?.sinceMs, here),
  );
  return EXIT_CODES.ok.code;
}

function statusText(sinceMs: number | undefined, here: readonly Lodger[]): string {
  const since = sinceMs === undefined ? '' : ` since ${new Date(sinceMs).toISOString()}`;
  const head = sinceMs === undefined ? 'not in maintenance' : `in maintenance${since}`;
  if (here.length === 0) return `${head}; no VM and no shadow is here`;
  return `${head}\n${table([['NAME', 'WHAT'], ...here.map(({ name, kind }) => [name, kind])])}`;
}

function reportText({ moved, shadows, alone, left }: EvacuationReport): string {
  const lines = [
    ...moved.map(
      ({ name, to, pauseMs }) => `${name} moved to ${to}; it stood still for ${Math.round(pauseMs)} ms`,
    ),
    ...shadows.map((name) => `the shadow of ${name} has left`),
    ...alone.map((name) => `warning: ${name} runs alone: no other host has its shadow`),
    ...left.map(({ name, kind, code, why }) => `stays: ${name} (${kind}): ${code}: ${why}`),
  ];
  return left.length === 0 ? [...lines, 'this host is empty'].join('\n') : lines.join('\n');
}
