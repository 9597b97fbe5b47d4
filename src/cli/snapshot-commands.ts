import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { systemClock as clock } from '../base/clock.ts';
import { formatBytes } from '../base/units.ts';
import { KeeperProcess } from '../control/keeper-process.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { snapshotFilesRoot } from '../control/run-paths.ts';
import { SnapshotError } from '../snapshot/snapshot-error.ts';
import { SnapshotFile } from '../snapshot/snapshot-file.ts';
import { readKeyFile } from '../snapshot/snapshot-key.ts';
import { SnapshotStore, type StoredSnapshot } from '../snapshot/snapshot-store.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import { duration, type Output, table } from './output.ts';
import { statusText } from './status-command.ts';
import { connectTo, openControl } from './vm-connection.ts';

interface StoreOptions {
  /** Where snapshots are kept; by default below what survives a reboot. */
  readonly store?: string | undefined;
}

interface KeyOptions {
  readonly keyFile?: string | undefined;
}

const givenSpec = z.object({ text: z.string(), source: z.string() });

/** Writes a snapshot of a protected VM, which goes on meanwhile, or of another one that may pause. */
export async function createSnapshot(
  name: string,
  { store, keyFile, pause }: StoreOptions & KeyOptions & { pause: boolean },
  out: Output,
): Promise<number> {
  using interruption = new Interruption();
  using control = await connectTo(name);
  const target = storeOf(name, store);
  target.removeUnfinished();
  const path = target.newPath(clock.wallMs());
  using progress = await followProgress(name, { path, out });
  const key = keyFile === undefined ? undefined : resolve(keyFile);
  const writing = control.snapshot({ path, keyFile: key, pause });
  const report = await interruption.orInterrupted(writing).catch(async (thrown: unknown) => {
    if (interruption.signal.aborted) await callOff(name, { path, writing });
    throw thrown;
  });
  progress[Symbol.dispose]();
  out.result({ name, ...report }, () => {
    const { epoch, sizeBytes, tookMs } = report;
    return `${name} as of epoch ${epoch}: ${formatBytes(sizeBytes)} in ${duration(tookMs)}\n  ${report.path}`;
  });
  return EXIT_CODES.ok.code;
}

export function listSnapshots(name: string | undefined, { store }: StoreOptions, out: Output): number {
  const root = rootOf(store);
  const vms = name === undefined ? SnapshotStore.vmsIn(root) : [name];
  const all = vms.flatMap((vm) => new SnapshotStore(root, vm).list().map((each) => ({ vm, ...each })));
  out.result({ snapshots: all.map(({ vm, ...each }) => ({ vm, ...told(each) })) }, () => {
    if (all.length === 0) return 'there is no snapshot';
    const rows = all.map(({ vm, id, outline, problem }) => [
      ...[vm, id, outline === undefined ? '-' : formatBytes(outline.sizeBytes)],
      outline === undefined ? '-' : duration(Math.max(0, clock.wallMs() - outline.facts.savedAtMs)),
      outline === undefined ? (problem?.code ?? '') : `epoch ${outline.facts.epoch}`,
      outline?.facts.reason ?? 'manual',
      outline?.isEncrypted === true ? 'encrypted' : '',
    ]);
    return table([['VM', 'ID', 'SIZE', 'AGE', '', 'REASON', ''], ...rows]);
  });
  return EXIT_CODES.ok.code;
}

/** Reads every byte. Exit code 1 when something is damaged. */
export async function verifySnapshots(
  name: string,
  { id, store, keyFile }: StoreOptions & KeyOptions & { id?: string | undefined },
  out: Output,
): Promise<number> {
  using interruption = new Interruption();
  const target = storeOf(name, store);
  const chosen = id === undefined ? target.list() : [target.find(id)];
  const results: { id: string; ok: boolean; problem: { code: string; message: string } | null }[] = [];
  for (const each of chosen) {
    const problem = await problemOf(each, { keyFile, signal: interruption.signal, out });
    results.push({ id: each.id, ok: problem === null, problem });
  }
  out.result({ name, snapshots: results }, () =>
    results.length === 0
      ? `there is no snapshot of ${name}`
      : results
          .map(
            ({ id, problem }) =>
              `${id}  ${problem === null ? 'whole' : `${problem.message} (${problem.code})`}`,
          )
          .join('\n'),
  );
  return results.every(({ ok }) => ok) ? EXIT_CODES.ok.code : EXIT_CODES.failed.code;
}

export async function pruneSnapshots(
  name: string,
  options: StoreOptions &
    KeyOptions & { keep?: number; olderThanMs?: number | undefined; mayTakeLast: boolean },
  out: Output,
): Promise<number> {
  const { keep, olderThanMs, mayTakeLast, keyFile } = options;
  // Of an encrypted one nothing but its beginning and end can be looked at without the key.
  const isGood = async (path: string) =>
    (keyFile === undefined && SnapshotFile.outline(path).isEncrypted) ||
    (await problemIn(path, { keyFile, out })) === null;
  const removed = await storeOf(name, options.store).prune({
    ...{ keep, olderThanMs, mayTakeLast, isGood, wallMs: clock.wallMs() },
  });
  const ids = removed.map(({ id }) => id);
  out.result({ name, removed: ids }, () =>
    ids.length === 0 ? 'nothing to remove' : `removed ${ids.join(', ')}`,
  );
  return EXIT_CODES.ok.code;
}

/** A VM goes on from a snapshot: what it did since then is not so. It must not run. */
export async function restoreSnapshot(
  name: string,
  { id, store, keyFile, verify }: StoreOptions & KeyOptions & { id?: string | undefined; verify: boolean },
  out: Output,
): Promise<number> {
  using interruption = new Interruption();
  const { path } = storeOf(name, store).find(id);
  const { text, source, token } = await specIn(path, { keyFile, verify, signal: interruption.signal, out });
  out.progress(`${name} goes on from ${path}`);
  const wishes = {
    ...{ restore: path, tokenAbove: token },
    ...(keyFile !== undefined && { keyFile: resolve(keyFile) }),
  };
  const keeper = startKeeper(text, { vm: name, source, wishes });
  try {
    await interruption.orInterrupted(keeper.started((what) => out.progress(what)));
  } catch (thrown) {
    if (interruption.signal.aborted) {
      await keeper.giveUp({ deadlineMs: 60_000, clock });
      await RunDirectory.sweep(name, { clock });
    }
    throw thrown;
  } finally {
    keeper.release();
  }
  using control = await openControl(name);
  const status = await control.status();
  out.result(status, () => statusText(status));
  return EXIT_CODES.ok.code;
}

/** The specification that the VM had then, which it needs to go on. */
async function specIn(
  path: string,
  { keyFile, verify, signal, out }: KeyOptions & { verify: boolean; signal: AbortSignal; out: Output },
): Promise<{ readonly text: string; readonly source: string; readonly token: number }> {
  using file = SnapshotFile.open(path, { key: keyOf(keyFile) });
  if (verify) await file.verify({ signal, onProgress: reading(path, out) });
  const given = givenSpec.safeParse(JSON.parse(file.blob('spec').toString()));
  if (given.success) return { ...given.data, token: file.facts.token };
  throw new SnapshotError('SNAPSHOT_FOREIGN', `${path} does not say which specification its VM had`, {
    hint: 'It was made by a keeper that was not given one as a text.',
    facts: { path },
  });
}

function startKeeper(
  text: string,
  options: { vm: string; source: string; wishes: { restore: string; tokenAbove: number; keyFile?: string } },
): KeeperProcess {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-restore-'));
  try {
    const path = join(folder, `${options.vm}.yaml`);
    writeFileSync(path, text, { mode: 0o600 });
    return new KeeperProcess(path, options);
  } finally {
    // The keeper has it open.
    rmSync(folder, { recursive: true });
  }
}

/** Nothing is left of it when this resolves, also where it was just whole. */
async function callOff(
  name: string,
  { path, writing }: { path: string; writing: Promise<unknown> },
): Promise<void> {
  using control = await openControl(name);
  // A keeper of an earlier release writes on: it is waited for.
  await control.callOffSnapshot(path).catch(() => {});
  await writing.then(
    () => rmSync(path, { force: true }),
    () => {},
  );
}

/** Tells how far it has come, from the VM's events, until it is disposed of. */
async function followProgress(
  name: string,
  { path, out }: { path: string; out: Output },
): Promise<Disposable> {
  const control = await openControl(name);
  const follow = async () => {
    // There were others before, and the VM may take some by itself.
    for await (const { kind, facts } of control.events({ since: 0, follow: true }))
      if (kind === 'snapshotting' && facts.path === path && typeof facts.share === 'number')
        out.progress(`writing a snapshot of ${name}`, `${Math.floor(100 * facts.share)} %`);
  };
  // Its end is the end of the connection.
  follow().catch(() => {});
  return control;
}

/** Files may be large. */
function reading(path: string, out: Output): (share: number) => void {
  return (share) => out.progress(`reading ${path}`, `${Math.floor(100 * share)} %`);
}

type Problem = { readonly code: string; readonly message: string };

async function problemOf(
  { path, problem }: StoredSnapshot,
  options: KeyOptions & { signal: AbortSignal; out: Output },
): Promise<Problem | null> {
  return problem ?? (await problemIn(path, options));
}

async function problemIn(
  path: string,
  { keyFile, signal, out }: KeyOptions & { signal?: AbortSignal; out: Output },
): Promise<Problem | null> {
  const key = keyOf(keyFile);
  try {
    using file = SnapshotFile.open(path, { key });
    await file.verify({ signal, onProgress: reading(path, out) });
    return null;
  } catch (thrown) {
    if (!(thrown instanceof SnapshotError)) throw thrown;
    return { code: thrown.code, message: thrown.message };
  }
}

function told({ id, path, outline, problem }: StoredSnapshot) {
  const { facts, ...rest } = outline ?? { facts: null };
  const reason = facts === null ? null : (facts.reason ?? 'manual');
  return { id, path, ...facts, ...rest, reason, problem: problem ?? null };
}

function keyOf(keyFile: string | undefined): Uint8Array | undefined {
  return keyFile === undefined ? undefined : readKeyFile(keyFile);
}

function storeOf(vm: string, store: string | undefined): SnapshotStore {
  return new SnapshotStore(rootOf(store), vm);
}

function rootOf(store: string | undefined): string {
  return store === undefined ? snapshotFilesRoot() : resolve(store);
}
