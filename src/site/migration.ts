import type { Clock } from '../base/clock.ts';
import type { Trace } from '../base/trace.ts';
import { ControlClient } from '../control/control-client.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { controlSocketOf } from '../control/run-directory.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { LeaseError } from '../lease/lease-error.ts';
import { refusalOf } from './migration-refusal.ts';
import { SiteRecords } from './site-records.ts';

const POLL_MS = 100;
/** The keeper says so before it answers. */
const MOVED_DEADLINE_MS = 2000;
export interface MigrateOptions {
  /** Another host of the site; undefined: where its shadow is, or else wherever it finds a place. */
  readonly to: string | undefined;
  /** For a shadow in sync there, and once more for one in the other direction. */
  readonly timeoutMs: number;
  /** When it is done: the VM acts there, or it is protected there as well. */
  readonly until: 'moved' | 'protected';
  readonly clock: Clock;
  /** Gives up where the VM is, or where it has gone to. */
  readonly signal?: AbortSignal | undefined;
  readonly trace?: Trace | undefined;
  readonly onProgress?: (step: string, detail?: string) => void;
}

export interface MigrationReport {
  readonly name: string;
  readonly from: string;
  readonly to: string;
  /** On record, of the host that acts now. */
  readonly token: number;
  /** From the last instruction here until it was heard that the guest runs there. */
  readonly pauseMs: number;
  /** The part of it that the other host took to let it run. */
  readonly promoteMs: number;
  /** Whether a shadow in the other direction is in sync by now, and where. */
  readonly protected: boolean;
  readonly shadowHost: string | null;
}

/**
 * Moves a VM that acts on this host to another one, by way of its shadow: nothing is lost. Its keeper hands over in one
 * step, which cannot be interrupted.
 * @throws KeeperError KEEPER_NOT_RUNNING, KEEPER_IS_SHADOW, KEEPER_HOST_UNKNOWN, KEEPER_HOST_REFUSED, KEEPER_HOST_NO_ROOM,
 * KEEPER_HOST_MAINTENANCE, KEEPER_PEER_REFUSED, KEEPER_NOT_PROTECTED, KEEPER_MIGRATE_TIMEOUT, …; ConfigError; the signal's reason
 */
export async function migrateVm(name: string, options: MigrateOptions): Promise<MigrationReport> {
  const { to, clock, signal } = options;
  using control = await connect(name, clock);
  const { actsOn } = await control.status();
  if (actsOn !== undefined) throw actsElsewhere(name, actsOn);
  const since = (await eventsSince(control, 0)).at(-1)?.seq ?? 0;
  // From here on there is something to take back.
  await control.place(to ?? null);
  let moved: Moved;
  let records: SiteRecords;
  try {
    records = SiteRecords.open({ clock });
    await untilInSync(control, { ...options, name, since });
    signal?.throwIfAborted();
    moved = await handOver(name, control, options);
  } catch (cause) {
    await control.place(null).catch(() => {});
    throw cause;
  }
  const shadowHost = await shadowInSync(records, name, { ...options, holder: moved.to });
  return { name, from: records.host, ...moved, protected: shadowHost !== null, shadowHost };
}

type Moved = Pick<MigrationReport, 'to' | 'token' | 'pauseMs' | 'promoteMs'>;

function connect(name: string, clock: Clock): Promise<ControlClient> {
  return ControlClient.connect(controlSocketOf(name), { vm: name, clock });
}

async function eventsSince(control: ControlClient, since: number): Promise<VmEvent[]> {
  const events: VmEvent[] = [];
  for await (const event of control.events({ since, follow: false })) events.push(event);
  return events;
}

/** Its shadow is in sync on the host that is wanted. */
async function untilInSync(
  control: ControlClient,
  { name, to, since, timeoutMs, clock, signal, onProgress }: MigrateOptions & { name: string; since: number },
): Promise<void> {
  const endMs = clock.nowMs() + timeoutMs;
  for (;;) {
    const status = await control.status();
    const { phase, shadow, shadowWanted } = status;
    const isThere = shadow?.host !== undefined && (to === undefined || shadow.host === to);
    if (phase === 'protected' && isThere) return;
    if (!shadowWanted) throw noShadowWanted(name);
    const failures = (await eventsSince(control, since)).filter(({ kind }) => kind === 'shadow-failed');
    const refusal = refusalOf(name, failures);
    if (refusal !== undefined) throw refusal;
    onProgress?.(
      `waiting for a shadow of ${name} in sync${to === undefined ? '' : ` on ${to}`}`,
      far(status),
    );
    if (clock.nowMs() > endMs) throw tooLate(name, { to, timeoutMs, phase, last: failures.at(-1) });
    await clock.sleep(POLL_MS, signal);
  }
}

function far({ phase, shadow }: VmStatus): string {
  const there =
    shadow?.host === undefined ? '' : ` on ${shadow.host}, ${Math.floor(100 * shadow.copiedShare)} %`;
  return `${phase}${there}`;
}

async function handOver(
  name: string,
  control: ControlClient,
  { clock, trace, onProgress }: MigrateOptions,
): Promise<Moved> {
  onProgress?.(`handing ${name} over`);
  // A connection of its own: the keeper may be gone when it has answered.
  using listening = await connect(name, clock);
  const event = movedEvent(listening);
  event.catch(() => {});
  await control.promote({ trace });
  const late = Promise.withResolvers<undefined>();
  const cancel = clock.after(MOVED_DEADLINE_MS, () => late.resolve(undefined));
  const facts = (await Promise.race([event, late.promise]).finally(cancel))?.facts;
  if (facts === undefined)
    throw new KeeperError('KEEPER_NO_ANSWER', `the keeper of ${name} did not say where the VM has gone`, {
      hint: `\`understudy status ${name}\` on the hosts of the site shows where it acts.`,
      facts: { vm: name },
    });
  const [token, pauseMs, promoteMs] = [facts.token, facts.pauseMs, facts.promoteMs].map(Number);
  return { to: String(facts.host), token: token ?? 0, pauseMs: pauseMs ?? 0, promoteMs: promoteMs ?? 0 };
}

async function movedEvent(control: ControlClient): Promise<VmEvent | undefined> {
  for await (const event of control.events({ since: 0, follow: true }))
    if (event.kind === 'moved') return event;
  return undefined;
}

/** The host of its shadow, once it is on record that this one could take over; null where that does not come to be. */
async function shadowInSync(
  records: SiteRecords,
  name: string,
  { holder, until, timeoutMs, clock, signal, onProgress }: MigrateOptions & { holder: string },
): Promise<string | null> {
  const endMs = clock.nowMs() + (until === 'protected' ? timeoutMs : 0);
  for (;;) {
    const record = await records.read(name).catch((cause) => {
      if (cause instanceof LeaseError) return undefined;
      throw cause;
    });
    if (record?.holder === holder && record.mode === 'in-sync' && record.shadow?.state === 'fresh')
      return record.shadow.host;
    // It has gone on to yet another one, or has ended: nothing of ours to wait for.
    if (record !== undefined && (record.holder !== holder || record.mode === 'ended')) return null;
    if (clock.nowMs() >= endMs) return null;
    onProgress?.(`${name} acts on ${holder}; waiting for its shadow`);
    await clock.sleep(POLL_MS, signal);
  }
}

function actsElsewhere(name: string, host: string): KeeperError {
  return new KeeperError('KEEPER_IS_SHADOW', `${name} acts on ${host}, and this host keeps its shadow`, {
    hint: `Give the command on ${host}.`,
    facts: { vm: name, host },
  });
}

function noShadowWanted(name: string): KeeperError {
  return new KeeperError('KEEPER_NOT_PROTECTED', `${name} has no shadow, and none is wanted`, {
    hint: `\`understudy protect ${name}\` gives it one, which it can be moved to.`,
    facts: { vm: name },
  });
}

function tooLate(
  name: string,
  {
    to,
    timeoutMs,
    phase,
    last,
  }: { to: string | undefined; timeoutMs: number; phase: string; last: VmEvent | undefined },
): KeeperError {
  const why = last === undefined ? phase : String(last.facts.error);
  const where = to === undefined ? '' : ` on ${to}`;
  const message = `${name} has no shadow in sync${where} after ${timeoutMs / 1000} s: ${why}`;
  return new KeeperError('KEEPER_MIGRATE_TIMEOUT', message, {
    hint: 'It goes on where it is. Give it more time, or see what keeps its shadow from being made.',
    facts: { vm: name, ...(to !== undefined && { host: to }) },
  });
}
