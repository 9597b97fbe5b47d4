import { z } from 'zod';
import type { Clock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { loadSiteConfig, siteConfigPath } from '../config/site-config.ts';
import { ControlClient } from '../control/control-client.ts';
import { KEEPER_END_DEADLINE_MS } from '../control/keeper-end.ts';
import { waitForEnd } from '../control/process-identity.ts';
import { controlSocketOf, type FoundVm, RunDirectory } from '../control/run-directory.ts';
import type { LeaseRecord } from '../lease/lease-record.ts';
import { type MigrationReport, migrateVm } from './migration.ts';
import { SiteRecords } from './site-records.ts';

const PROTECTED_DEADLINE_MS = 60_000;
const POLL_MS = 200;
/** A shadow may have begun to act meanwhile, and a VM have been started just before. */
const PASSES_MAX = 3;

/** What a keeper on this host keeps. */
export interface Lodger {
  readonly name: string;
  readonly kind: 'vm' | 'shadow';
  /** Hosts of the site that it may be on; undefined: this one alone. */
  readonly hosts: readonly string[] | undefined;
}

export interface LeftBehind {
  readonly name: string;
  readonly kind: 'vm' | 'shadow' | 'lost';
  readonly code: string;
  readonly why: string;
}

export interface EvacuationReport {
  readonly moved: readonly Pick<MigrationReport, 'name' | 'to' | 'token' | 'pauseMs'>[];
  /** VMs whose shadows have left. */
  readonly shadows: readonly string[];
  /** VMs without a shadow: there is no other host for it, or none has taken it yet. */
  readonly alone: readonly string[];
  readonly left: readonly LeftBehind[];
}

export interface EvacuationOptions {
  readonly clock: Clock;
  /** Shadows go also where nobody says that they are not needed. */
  readonly force: boolean;
  /** For each VM. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: (step: string, detail?: string) => void;
}

/** Empties this host, as far as that is possible. What was done already is not done again: it can be repeated at any time. */
export async function evacuate(options: EvacuationOptions): Promise<EvacuationReport> {
  const moved: MigrationReport[] = [];
  const shadows: string[] = [];
  const alone = new Set<string>();
  const left = new Map<string, LeftBehind>();
  for (let pass = 0; pass < PASSES_MAX; pass += 1) {
    const todo = RunDirectory.list().filter(({ name }) => !left.has(name));
    if (todo.length === 0) break;
    for (const found of todo) {
      options.signal?.throwIfAborted();
      const outcome = await sendAway(found, options);
      if (outcome.kind === 'left') left.set(found.name, outcome.left);
      if (outcome.kind === 'moved') moved.push(outcome.report);
      if (outcome.kind === 'shadow-left') shadows.push(found.name);
      if (outcome.kind !== 'left' && outcome.isAlone) alone.add(found.name);
    }
  }
  const gone = [...moved.map(({ name }) => name), ...shadows].filter((name) => !alone.has(name));
  for (const name of await unprotected(gone, options)) alone.add(name);
  return {
    moved: moved.map(({ name, to, token, pauseMs }) => ({ name, to, token, pauseMs })),
    ...{ shadows, alone: [...alone], left: [...left.values()] },
  };
}

/** Those of `names` that have found no other place for their shadow in time. */
async function unprotected(
  names: readonly string[],
  { clock, timeoutMs, signal, onProgress }: EvacuationOptions,
): Promise<readonly string[]> {
  if (names.length === 0) return [];
  const records = SiteRecords.open({ clock });
  const endMs = clock.nowMs() + Math.min(timeoutMs, PROTECTED_DEADLINE_MS);
  let waiting = names;
  for (;;) {
    const looked = await Promise.all(
      waiting.map(async (name) => ({ name, record: await records.read(name).catch(() => undefined) })),
    );
    // One that has ended meanwhile needs none.
    waiting = looked.filter(({ record }) => !isCovered(record, records.host)).map(({ name }) => name);
    if (waiting.length === 0 || clock.nowMs() >= endMs) return waiting;
    onProgress?.('waiting for shadows elsewhere:', waiting.join(', '));
    await clock.sleep(POLL_MS, signal);
  }
}

/** A shadow that was here stays on record until there is another one. One that has ended meanwhile needs none. */
function isCovered(record: LeaseRecord | undefined, here: string): boolean {
  if (record?.mode === 'ended') return true;
  return record?.mode === 'in-sync' && record.shadow?.state === 'fresh' && record.shadow.host !== here;
}

type Outcome =
  | { readonly kind: 'moved'; readonly report: MigrationReport; readonly isAlone: boolean }
  | { readonly kind: 'shadow-left'; readonly isAlone: boolean }
  | { readonly kind: 'left'; readonly left: LeftBehind };

async function sendAway(found: FoundVm, options: EvacuationOptions): Promise<Outcome> {
  const { name, keeper, record } = found;
  if (keeper === 'lost') {
    const why = record?.failed ? 'it failed, and its logs are here' : 'its keeper was killed';
    return { kind: 'left', left: { name, kind: 'lost', code: 'KEEPER_LOST', why } };
  }
  let kind: Lodger['kind'] = 'vm';
  try {
    const lodger = await lodgerOf(found, options.clock);
    kind = lodger.kind;
    const { hosts } = lodger;
    if (hosts === undefined) {
      const why = 'it is a VM of this host alone: stop it, or let it be';
      return { kind: 'left', left: { name, kind, code: 'KEEPER_HOST_REFUSED', why } };
    }
    if (kind === 'shadow') {
      options.onProgress?.(`asking the VM of the shadow ${name} to do without it`);
      await endShadow(found, options);
      return { kind: 'shadow-left', isAlone: hosts.length <= 2 };
    }
    const report = await migrateVm(name, { ...options, to: undefined, until: 'moved' });
    if (record !== undefined)
      await waitForEnd(record.keeper, { deadlineMs: KEEPER_END_DEADLINE_MS, clock: options.clock });
    return { kind: 'moved', report, isAlone: !report.protected && hosts.length <= 2 };
  } catch (thrown) {
    options.signal?.throwIfAborted();
    const code = thrown instanceof UnderstudyError ? thrown.code : 'KEEPER_INTERNAL';
    return { kind: 'left', left: { name, kind, code, why: messageOf(thrown) } };
  }
}

async function endShadow(
  { name, record }: FoundVm,
  { force, clock }: Pick<EvacuationOptions, 'force' | 'clock'>,
): Promise<void> {
  {
    using control = await connect(name, clock);
    await control.stop({ graceful: !force, termination: 'remove' });
  }
  if (record !== undefined) await waitForEnd(record.keeper, { deadlineMs: KEEPER_END_DEADLINE_MS, clock });
}

/** What is on this host now, as far as its keepers answer. */
export async function lodgers(clock: Clock): Promise<Lodger[]> {
  const alive = RunDirectory.list().filter(({ keeper }) => keeper === 'alive');
  const asked = await Promise.all(alive.map((found) => lodgerOf(found, clock).catch(() => undefined)));
  return asked.filter((lodger) => lodger !== undefined);
}

const hostsSchema = z.object({
  shadow: z.object({ hosts: z.union([z.literal('auto'), z.array(z.string())]).optional() }),
});

async function lodgerOf({ name, record }: FoundVm, clock: Clock): Promise<Lodger> {
  using control = await connect(name, clock);
  const { actsOn } = await control.status();
  const said = hostsSchema.safeParse(record?.spec).data?.shadow.hosts;
  return { name, kind: actsOn === undefined ? 'vm' : 'shadow', hosts: said === 'auto' ? allHosts() : said };
}

function allHosts(): string[] {
  const { host, hosts } = loadSiteConfig(siteConfigPath());
  return [host, ...Object.keys(hosts)];
}

function connect(name: string, clock: Clock): Promise<ControlClient> {
  return ControlClient.connect(controlSocketOf(name), { vm: name, clock });
}
