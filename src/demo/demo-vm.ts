import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import type { DemoGuest } from '../../guest/build.ts';
import type { Clock } from '../base/clock.ts';
import { ControlClient } from '../control/control-client.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { KeeperProcess } from '../control/keeper-process.ts';
import { controlSocketOf, RunDirectory } from '../control/run-directory.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { orAborted } from './abortable-wait.ts';
import { DemoError } from './demo-error.ts';
import type { DemoNetwork } from './demo-network.ts';
import { monotonicMs } from './monotonic-time.ts';

const STOP_DEADLINE_MS = 30_000;
const EVENT_DEADLINE_MS = 120_000;
/** Events after which nothing else will happen. */
const LAST_EVENTS: readonly string[] = ['failed', 'stopping', 'stopped'];

export interface DemoVmOptions {
  readonly name: string;
  readonly guest: Pick<DemoGuest, 'kernel' | 'initrd' | 'cmdline'>;
  readonly network: DemoNetwork;
  readonly clock: Clock;
  /** Fields of the specification instead of the demo's own: `{memory: '1GiB', shadow: {enabled: false}}`. */
  readonly spec?: Readonly<Record<string, unknown>>;
  /** More words for the guest's kernel command line. */
  readonly cmdline?: string;
  readonly signal?: AbortSignal | undefined;
}

export interface Wait {
  /** Number of an event: only later ones count. */
  readonly after?: number;
  readonly deadlineMs?: number;
}

/** The demo guest as a user would run it: a keeper process, spoken to over its control socket. */
export class DemoVm implements AsyncDisposable {
  readonly name: string;
  readonly #keeper: KeeperProcess;
  readonly #clock: Clock;
  readonly #signal: AbortSignal | undefined;
  #kept = false;

  private constructor(keeper: KeeperProcess, { name, clock, signal }: DemoVmOptions) {
    this.name = name;
    this.#keeper = keeper;
    this.#clock = clock;
    this.#signal = signal;
  }

  /** Resolves when QEMU runs; the guest boots and protection follows. @throws what kept it from starting */
  static async start(options: DemoVmOptions): Promise<DemoVm> {
    await using starting = new AsyncDisposableStack();
    const vm = starting.use(new DemoVm(startKeeper(options), options));
    await orAborted(vm.#keeper.started(), options.signal);
    starting.move();
    return vm;
  }

  async status(): Promise<VmStatus> {
    using control = await this.#connect();
    return await control.status();
  }

  async promote(): Promise<void> {
    using control = await this.#connect();
    await control.promote();
  }

  /** Resolves with the event that began the protection. */
  untilProtected(wait: Wait = {}): Promise<VmEvent> {
    return this.waitFor(['protected'], wait);
  }

  /**
   * The first event of one of these kinds.
   * @throws DemoError DEMO_VM_LOST when the VM ends before, or `deadlineMs` (two minutes) pass
   */
  async waitFor(
    kinds: readonly string[],
    { after = 0, deadlineMs = EVENT_DEADLINE_MS }: Wait = {},
  ): Promise<VmEvent> {
    using control = await this.#connect();
    const late = Promise.withResolvers<never>();
    const cancel = this.#clock.after(deadlineMs, () =>
      late.reject(this.#lost(`had no event ${kinds.join(' or ')} within ${deadlineMs / 1000} s`)),
    );
    try {
      const found = this.#firstEvent(control, kinds, after);
      return await orAborted(Promise.race([found, late.promise]), this.#signal);
    } finally {
      cancel();
    }
  }

  /** SIGKILL for the QEMU that acts. `killMs` is taken just before, on `monotonicMs`. */
  async killPrimary(): Promise<{ readonly killMs: number; readonly pid: number }> {
    const { primary, phase } = await this.status();
    if (primary === null) throw this.#lost(`has no QEMU to kill (${phase})`);
    const killMs = monotonicMs();
    process.kill(primary.pid, 'SIGKILL');
    return { killMs, pid: primary.pid };
  }

  /** Leaves the VM running when this object is disposed of and this process ends. */
  keep(): void {
    this.#kept = true;
  }

  /** Ends the VM at once and removes all that belongs to it. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#kept) {
      this.#keeper.release();
      return;
    }
    try {
      using control = await this.#connect();
      await control.stop({ graceful: false, deadlineMs: STOP_DEADLINE_MS });
      await this.#keeper.exited;
    } catch (thrown) {
      // It is not up yet, has ended by itself, or hangs.
      if (!(thrown instanceof KeeperError)) throw thrown;
      await this.#keeper.giveUp({ deadlineMs: STOP_DEADLINE_MS, clock: this.#clock });
    }
    await RunDirectory.sweep(this.name, { clock: this.#clock });
  }

  async #firstEvent(control: ControlClient, kinds: readonly string[], after: number): Promise<VmEvent> {
    for await (const event of control.events({ since: after, follow: true })) {
      if (kinds.includes(event.kind)) return event;
      if (LAST_EVENTS.includes(event.kind)) throw this.#lost(`ended: ${JSON.stringify(event.facts)}`);
    }
    throw this.#lost('ended');
  }

  #connect(): Promise<ControlClient> {
    return ControlClient.connect(controlSocketOf(this.name), { vm: this.name, clock: this.#clock });
  }

  #lost(what: string): DemoError {
    return new DemoError('DEMO_VM_LOST', `${this.name} ${what}`, {
      hint: 'See whether `understudy doctor` finds something wrong with this machine.',
      facts: { vm: this.name },
    });
  }
}

/** When an event happened on `monotonicMs`; exact to a millisecond. */
export function eventMs(event: VmEvent, clock: Clock): number {
  return Date.parse(event.time) - clock.wallMs() + monotonicMs();
}

function startKeeper({ name, guest, network, cmdline = '', spec = {} }: DemoVmOptions): KeeperProcess {
  const words = [guest.cmdline, network.cmdline, cmdline].filter((part) => part !== '');
  const folder = mkdtempSync(join(tmpdir(), 'understudy-demo-'));
  const path = join(folder, `${name}.yaml`);
  try {
    const boot = { kernel: guest.kernel, initrd: guest.initrd, cmdline: words.join(' ') };
    writeFileSync(
      path,
      stringify({ name, memory: '256MiB', boot, nics: [{ uplink: network.uplink }], ...spec }),
    );
    return new KeeperProcess(path, { vm: name });
  } finally {
    // The keeper has it open.
    rmSync(folder, { recursive: true });
  }
}
