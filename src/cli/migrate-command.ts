import { systemClock as clock } from '../base/clock.ts';
import { type MigrationReport, migrateVm } from '../site/migration.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { isOwnHost } from './host-choice.ts';
import { hostClient } from './host-connection.ts';
import { Interruption } from './interruption.ts';
import type { Output } from './output.ts';
import { findVm } from './vm-connection.ts';

export interface MigrateCommandOptions {
  readonly to?: string | undefined;
  readonly wait: 'protected' | 'moved';
  readonly timeoutMs: number;
}

/** Moves a VM to another host. Ctrl-C leaves it where it is, or where it has gone to. */
export async function migrate(
  name: string,
  { to, wait, timeoutMs }: MigrateCommandOptions,
  out: Output,
): Promise<number> {
  using interruption = new Interruption();
  const { signal } = interruption;
  if (isOwnHost()) findVm(name);
  else out.progress(`waiting until ${name} has moved`);
  const report: MigrationReport = isOwnHost()
    ? await migrateVm(name, {
        ...{ to, until: wait, timeoutMs, clock, signal },
        onProgress: (step, detail) => out.progress(step, detail),
      })
    : await hostClient().call(
        'migrateVm',
        {
          params: { name },
          body: { ...(to !== undefined && { to }), wait, timeoutSeconds: timeoutMs / 1000 },
        },
        signal,
      );
  out.result(report, () => reportText(report));
  return EXIT_CODES.ok.code;
}

function reportText(report: MigrationReport): string {
  const { name, from, to, token, pauseMs, shadowHost } = report;
  const back =
    shadowHost === null ? 'not protected there yet' : `protected there, by a shadow on ${shadowHost}`;
  return `${name} moved from ${from} to ${to}; it stood still for ${Math.round(pauseMs)} ms (token ${token}); ${back}`;
}
