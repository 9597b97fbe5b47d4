import type { Clock } from '../base/clock.ts';
import { ControlClient } from '../control/control-client.ts';
import { type ProcessIdentity, waitForEnd } from '../control/process-identity.ts';
import { controlSocketOf } from '../control/run-directory.ts';
import type { VmEvent } from '../control/vm-event.ts';
import { PHASES, type Phase } from '../shadow/protection.ts';

/** A keeper that lives and does not answer is asked again after so long. */
const RETRY_MS = 1000;
const PHASE_EVENTS: ReadonlySet<string> = new Set(PHASES);

export interface KeeperWatchOptions {
  readonly vm: string;
  readonly keeper: ProcessIdentity;
  /** Events after this number are reported. */
  readonly since: number;
  readonly clock: Clock;
  readonly onEvent: (event: VmEvent) => void;
  /** The phase is another, or whether the keeper answers. */
  readonly onChange: () => void;
  /** The keeper's process is gone. */
  readonly onEnd: () => void;
}

/** Listens to one keeper for as long as it lives. It may be busy, hang or not listen yet: then it is tried again. */
export class KeeperWatch implements Disposable {
  readonly keeper: ProcessIdentity;
  readonly #options: KeeperWatchOptions;
  readonly #abort = new AbortController();
  #client: ControlClient | undefined;
  #phase: Phase | undefined;
  #shadowWanted: boolean | undefined;
  #actsOn: string | undefined;
  #seen: number;

  constructor(options: KeeperWatchOptions) {
    this.keeper = options.keeper;
    this.#options = options;
    this.#seen = options.since;
    void this.#listen();
  }

  /** What the keeper says that its VM does; undefined while it does not answer. */
  get phase(): Phase | undefined {
    return this.#phase;
  }

  /** Whether a shadow is wanted, as the keeper says. */
  get shadowWanted(): boolean | undefined {
    return this.#shadowWanted;
  }

  /** The host that the VM acts on, where its keeper here keeps the shadow. */
  get actsOn(): string | undefined {
    return this.#actsOn;
  }

  [Symbol.dispose](): void {
    this.#abort.abort();
    this.#client?.[Symbol.dispose]();
  }

  async #listen(): Promise<void> {
    const { clock, keeper, onChange, onEnd } = this.#options;
    for (;;) {
      // Connections break when the keeper ends, and when it hangs: what tells them apart is its process.
      await this.#follow().catch(() => {});
      if (this.#abort.signal.aborted) return;
      if (this.#phase !== undefined) {
        this.#phase = undefined;
        this.#shadowWanted = undefined;
        this.#actsOn = undefined;
        onChange();
      }
      const ended = await waitForEnd(keeper, { deadlineMs: RETRY_MS, clock });
      if (this.#abort.signal.aborted) return;
      if (ended) return onEnd();
    }
  }

  async #follow(): Promise<void> {
    const { vm, clock, onEvent, onChange } = this.#options;
    using client = await ControlClient.connect(controlSocketOf(vm), { vm, clock });
    this.#client = client;
    if (this.#abort.signal.aborted) return;
    const { phase, shadowWanted, actsOn } = await client.status();
    [this.#phase, this.#shadowWanted, this.#actsOn] = [phase, shadowWanted, actsOn];
    onChange();
    for await (const event of client.events({ since: this.#seen, follow: true })) {
      this.#seen = event.seq;
      if (PHASE_EVENTS.has(event.kind)) this.#phase = event.kind as Phase;
      if (event.kind === 'protect-requested') this.#shadowWanted = true;
      if (event.kind === 'unprotect-requested') this.#shadowWanted = false;
      onEvent(event);
      onChange();
    }
  }
}
