import type { Clock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { FailoverReport } from '../control/failover-report.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { withFirmware } from '../qemu/firmware.ts';
import type { StagedEpoch } from '../replication/epoch-slot.ts';
import { copyImage } from '../replication/image-copy.ts';
import { AgentProbe } from './agent-probe.ts';
import type { Instance } from './instance.ts';
import type { Loan } from './loans.ts';
import type { RemoteShadow } from './remote-shadow.ts';
import type { ServedDisks } from './served-disks.ts';
import type { ShadowLoan } from './shadow-life.ts';
import type { ShadowSession } from './shadow-session.ts';
import { TrialDisks, type TriedDisk } from './trial-disks.ts';

/** For so long it has to run without a panic, a reset or an end. */
const RUN_MS = 1000;
/** A guest under TCG has all its code to translate anew. */
const AGENT_DEADLINE_MS = 10_000;
/** Share of a CPU that the test may take from the VMs that matter. */
const CPU_SHARE = 0.5;
const ENDS_OF_A_GUEST: ReadonlySet<string> = new Set(['GUEST_PANICKED', 'SHUTDOWN', 'RESET']);

export interface FailoverTestOptions {
  readonly loan: ShadowLoan;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  /** The guest has been heard on its agent channel: it has to answer there. */
  readonly expectsAgent: boolean;
  /** Those of the shadow that commit with epochs. */
  readonly disks: readonly TriedDisk[];
  /** Starts a QEMU like any standby of this VM, but with these disks. */
  readonly startStandby: (signal: AbortSignal, disks: ServedDisks) => Promise<Instance>;
}

/**
 * Proves that the shadow would come up: a QEMU is started on a copy of its image, takes the device state and runs on,
 * with nobody at the other end of its nics. The shadow goes on receiving epochs meanwhile. Nothing is left of the
 * test when this resolves; it does not reject for what the test is there to find.
 */
export async function testFailover(options: FailoverTestOptions): Promise<FailoverReport> {
  const found = nothingFound();
  try {
    await tryOut(options, found);
    found.ok = true;
  } catch (cause) {
    const { signal } = options.loan;
    found.reason = reasonOf(signal.aborted ? signal.reason : cause);
  }
  return found;
}

interface RemoteTestOptions {
  readonly loan: Loan<RemoteShadow>;
  readonly expectsAgent: boolean;
}

/**
 * The same of a shadow on another host, by its keeper there. A takeover that needs it meanwhile is what the report says then.
 * @throws KeeperError KEEPER_PEER_REFUSED, KEEPER_PEER_LOST: it could not be tried
 */
export async function testRemotely({ loan, expectsAgent }: RemoteTestOptions): Promise<FailoverReport> {
  const { signal } = loan;
  try {
    return await loan.use(({ errands }) => errands.test({ expectsAgent, signal }));
  } catch (cause) {
    if (!signal.aborted) throw cause;
    return { ...nothingFound(), reason: reasonOf(signal.reason) };
  }
}

type Writable<Type> = { -readonly [Key in keyof Type]: Type[Key] };

function nothingFound(): Writable<FailoverReport> {
  return {
    ...{ ok: false, reason: null, epoch: null, copyMs: null, heldMs: null, loadMs: null, runningMs: null },
    ...{ agentAnswered: null, memoryBytes: null },
  };
}

async function tryOut(options: FailoverTestOptions, found: Writable<FailoverReport>): Promise<void> {
  const { loan, clock, failpoints, expectsAgent, startStandby } = options;
  const { signal } = loan;
  const step = (name: string) => orAborted(failpoints.hit(`failover-test.${name}`), signal);
  await step('before-start');
  using disks = new TrialDisks(options.disks);
  // Who needs the shadow does not wait for the end of this QEMU, nor for what is kept for it.
  signal.addEventListener('abort', () => disks[Symbol.dispose](), { once: true });
  await using instance = await startStandby(signal, disks);
  const end = watchForTheEnd(instance, signal);
  instance.limitCpu(CPU_SHARE);
  await step('before-copy');
  const { staged, firmware } = await loan.use((session) =>
    copy(session, { instance, disks, clock, signal, found, step }),
  );
  await end.orEnded(disks.ready(staged.epoch));
  await step('before-load');
  const startMs = clock.nowMs();
  await end.orEnded(instance.machine.loadDeviceState(withFirmware(staged.deviceState, firmware)));
  found.loadMs = clock.nowMs() - startMs;
  await step('after-load');
  using agent = new AgentProbe(instance.ports.get('agent'));
  const runMs = clock.nowMs();
  await end.orEnded(instance.machine.cont());
  await step('running');
  if (expectsAgent) {
    found.agentAnswered = await end.orEnded(agent.answers({ clock, deadlineMs: AGENT_DEADLINE_MS }));
    if (!found.agentAnswered) throw failed('its guest agent gave no answer');
  }
  await end.orEnded(clock.sleep(Math.max(0, runMs + RUN_MS - clock.nowMs())));
  const { running, status } = await end.orEnded(instance.machine.status());
  if (!running) throw failed(`it does not run but is ${status}`);
  await step('before-end');
  end.assertRuns();
  disks.assertSound();
  found.runningMs = clock.nowMs() - runMs;
}

interface CopyOptions {
  readonly instance: Instance;
  readonly disks: TrialDisks;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  readonly found: Writable<FailoverReport>;
  readonly step: (name: string) => Promise<void>;
}

async function copy(
  { image, firmware }: ShadowSession,
  { instance, disks, clock, signal, found, step }: CopyOptions,
): Promise<{ readonly staged: StagedEpoch; readonly firmware: Uint8Array }> {
  const startMs = clock.nowMs();
  const { staged, copiedBytes, heldMs } = await copyImage({
    image,
    to: instance.memory,
    signal,
    nowMs: () => clock.nowMs(),
    onStill: (epoch) => {
      signal.throwIfAborted();
      disks.begin(epoch);
    },
    onHeld: () => step('held'),
  });
  found.epoch = staged.epoch;
  found.copyMs = clock.nowMs() - startMs;
  found.heldMs = heldMs;
  found.memoryBytes = copiedBytes;
  return { staged, firmware };
}

/** What ends a test before its time: the guest, its QEMU, or somebody who needs the shadow or the machine. */
function watchForTheEnd({ machine }: Instance, signal: AbortSignal) {
  const { promise, reject } = Promise.withResolvers<never>();
  promise.catch(() => {});
  let ended: unknown;
  const end = (why: unknown) => {
    ended ??= why;
    reject(why);
  };
  machine.qmp.onEvent(({ name }) => {
    if (ENDS_OF_A_GUEST.has(name)) end(failed(`its guest reported ${name}`));
  });
  // What QEMU says about a state that it does not take is worth more than that it ended: it gets its turn first.
  void machine.process.exited
    .then(() => machine.process.drained())
    .then(() => setImmediate(() => end(failed('its QEMU ended'))));
  const abort = () => end(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  if (signal.aborted) abort();
  return {
    orEnded: <Value>(work: Promise<Value>): Promise<Value> => Promise.race([promise, work]),
    assertRuns: () => {
      if (ended !== undefined) throw ended;
    },
  };
}

async function orAborted(work: Promise<void> | void, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  if (work === undefined) return;
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  try {
    await Promise.race([promise, work]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

function failed(what: string): KeeperError {
  return new KeeperError('KEEPER_TEST_FAILED', `the copy of the shadow did not go on: ${what}`);
}

function reasonOf(cause: unknown): NonNullable<FailoverReport['reason']> {
  return {
    code: cause instanceof UnderstudyError ? cause.code : 'KEEPER_TEST_FAILED',
    message: messageOf(cause),
  };
}
