import { readFileSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import type { ConditionWaiters } from '../base/condition-waiters.ts';
import { messageOf } from '../base/errors.ts';
import type { GuestLink } from '../net/guest-link.ts';
import { readFirmware } from '../qemu/firmware.ts';
import { SavedState, type SavedStateFacts } from '../replication/saved-state.ts';
import { isEnding, type ProtectionEvent, type ProtectionState } from '../shadow/protection.ts';
import type { Instance } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { isStopping, noPlaceToSave, saveFailed, superseded } from './refusals.ts';
import type { ShadowLife } from './shadow-life.ts';
import { stateFacts } from './state-restoring.ts';
import type { VmDisks } from './vm-disks.ts';

export type SavedKind = SavedStateFacts['kind'];

/** Progress is told at these steps of it. */
const SHARE_STEP = 0.1;

export interface StateKeepingOptions {
  readonly options: KeeperOptions;
  readonly waiters: ConditionWaiters;
  readonly shadow: ShadowLife;
  readonly disks: VmDisks;
  readonly state: () => ProtectionState;
  readonly primary: () => Instance | undefined;
  readonly links: () => readonly GuestLink[];
  readonly dispatch: (event: ProtectionEvent) => void;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
  /** The guest stood still for so long. */
  readonly notePause: (pausedMs: number) => void;
}

/** A VM that stands still, with all of its state but its memory read. */
export interface StandingVm {
  readonly memory: Instance['memory'];
  readonly deviceState: Uint8Array;
  readonly firmware: Uint8Array;
  readonly signal: AbortSignal;
}

interface Order {
  readonly kind: SavedKind | 'file';
  /** Of a snapshot file: writes it, and the VM runs on. */
  readonly write?: (still: StandingVm) => Promise<void>;
  readonly abort: AbortController;
  readonly done: PromiseWithResolvers<void>;
  /** Resolves when it holds nothing of the VM any more. */
  work: Promise<void>;
}

/** Writes the state of a VM to disk when it is told to. */
export class StateKeeping {
  readonly #vm: StateKeepingOptions;
  #order: Order | undefined;

  constructor(vm: StateKeepingOptions) {
    this.#vm = vm;
  }

  /**
   * Resolves when the state is on disk: a VM that is suspended is being ended then, any other one runs again, without a
   * shadow, and is about to be ended. Rejects with the reason, and the VM goes on.
   */
  async save(kind: SavedKind): Promise<void> {
    const present = this.#order;
    if (present?.kind === kind) await present.done.promise;
    else await this.#request({ kind });
  }

  /** Has `write` write a snapshot file while the VM stands still; it runs on when this resolves. */
  async whileStanding(write: (still: StandingVm) => Promise<void>): Promise<void> {
    await this.#request({ kind: 'file', write });
  }

  async #request(order: Pick<Order, 'kind' | 'write'>): Promise<void> {
    if (this.#order !== undefined) throw saveFailed(this.#name, 'it is being saved in another way');
    const done = Promise.withResolvers<void>();
    this.#order = { ...order, abort: new AbortController(), done, work: Promise.resolve() };
    this.#vm.dispatch({ kind: 'save-requested' });
    const state = this.#vm.state();
    if (state.phase !== 'saving')
      this.#finish(
        isEnding(state) ? isStopping(this.#name) : saveFailed(this.#name, 'it is being taken over'),
      );
    await done.promise;
  }

  /** Nobody waits for what is under way any more: the VM is lost, or is ended. */
  giveUp(): void {
    this.#order?.abort.abort(saveFailed(this.#name, 'the VM was lost or stopped meanwhile'));
  }

  /** Gives up, and resolves when nothing of the VM is in use any more. */
  async end(): Promise<void> {
    this.giveUp();
    await this.#order?.work;
  }

  /** Carries out what was ordered. It reports by itself: a takeover must not wait for it. */
  begin(): void {
    const order = this.#order;
    if (order === undefined) return;
    const { kind, write } = order;
    const working =
      kind !== 'file'
        ? this.#carryOut(kind, order)
        : write
          ? this.#carryOutStanding(write, order)
          : undefined;
    assert(working !== undefined, 'who orders a file says how it is written');
    order.work = working.then(
      () => this.#finish(undefined),
      (cause) => this.#finish(cause),
    );
  }

  #finish(cause: unknown): void {
    const order = this.#order;
    this.#order = undefined;
    if (cause === undefined) order?.done.resolve();
    else order?.done.reject(cause);
  }

  /** As if nothing had been asked, the VM runs afterwards, and a shadow that is wanted is made anew. */
  async #carryOutStanding(write: NonNullable<Order['write']>, { abort: { signal } }: Order): Promise<void> {
    const { options, shadow, primary, dispatch } = this.#vm;
    const instance = primary();
    const startMs = options.clock.nowMs();
    try {
      if (instance === undefined) throw isStopping(this.#name);
      await shadow.halt();
      signal.throwIfAborted();
      try {
        const state = await this.#standStill(instance);
        await write({ ...state, memory: instance.memory, signal });
        signal.throwIfAborted();
        for (const link of this.#vm.links()) link.drainOutput();
      } finally {
        // One that was lost is taken over, and one that is stopped is stopped.
        if (!signal.aborted) await this.#goOn(instance, { startMs, signal });
      }
    } finally {
      if (!signal.aborted) dispatch({ kind: 'save-failed' });
    }
  }

  async #carryOut(kind: SavedKind, { abort: { signal } }: Order): Promise<void> {
    const { options, shadow, primary, dispatch, publish } = this.#vm;
    const { clock, failpoints } = options;
    const instance = primary();
    const startMs = clock.nowMs();
    let standsStill = false;
    try {
      if (instance === undefined) throw isStopping(this.#name);
      await SavedState.assertRoom(this.#place(kind), instance.memory);
      await shadow.halt();
      await failpoints.hit('save.before-pause');
      signal.throwIfAborted();
      standsStill = true;
      const saved = await this.#saveStill(instance, { kind, signal });
      await failpoints.hit('save.before-end');
      // One that was lost at the last moment is taken over: it may not go on from here as well.
      if (this.#vm.state().phase !== 'saving') {
        await saved.remove();
        throw saveFailed(this.#name, 'the VM was lost or stopped meanwhile');
      }
      publish('saved', { kind, bytes: saved.sizeBytes, tookMs: clock.nowMs() - startMs });
      // What the guest sent before it stood still leaves now, or never.
      for (const link of this.#vm.links()) link.drainOutput();
      if (kind === 'snapshot') await this.#goOn(instance, { startMs, signal });
      dispatch({ kind: 'saved', next: kind === 'suspended' ? 'end' : 'power-off' });
    } catch (cause) {
      publish('save-failed', { kind, error: messageOf(cause) });
      // One that is lost is taken over, and one that is stopped is stopped.
      if (kind === 'suspended') options.remote?.right.forgetState();
      if (signal.aborted) throw signal.reason;
      if (this.#vm.state().phase !== 'saving') throw cause;
      if (standsStill && instance !== undefined)
        await this.#goOn(instance, { startMs, signal }).catch(() => {});
      dispatch({ kind: 'save-failed' });
      throw cause;
    }
  }

  /** From here on the guest stands still, also when this fails. */
  async #saveStill(
    instance: Instance,
    { kind, signal }: { kind: SavedKind; signal: AbortSignal },
  ): Promise<SavedState> {
    const { options, shadow, publish } = this.#vm;
    const { clock, failpoints } = options;
    const { deviceState, firmware } = await this.#standStill(instance);
    let told = 0;
    publish('saving', { kind, share: 0 });
    return await SavedState.save(this.#place(kind), {
      facts: { ...stateFacts(options), kind, savedAtMs: clock.wallMs(), epoch: shadow.committed },
      memory: instance.memory,
      deviceState,
      firmware,
      signal,
      failpoints,
      beforeHeader: () => this.#giveShadowUp(kind, signal),
      onProgress: (share) => {
        if (share < told + SHARE_STEP) return;
        told = share;
        publish('saving', { kind, share });
      },
    });
  }

  /**
   * A shadow on another host would go on from before the state that is about to exist here: from now on it may not, and of a VM
   * that is suspended it is on record where it is. Until this moment the shadow could take over.
   * @throws KeeperError KEEPER_SUPERSEDED: it has
   */
  async #giveShadowUp(kind: SavedKind, signal: AbortSignal): Promise<Pick<SavedStateFacts, 'rightToken'>> {
    const { options, waiters, state, disks, dispatch } = this.#vm;
    const { remote, failpoints } = options;
    if (remote !== undefined) {
      dispatch({ kind: 'shadow-lost' });
      await waiters.until(() => state().dropping === 0 || state().phase !== 'saving');
      await failpoints.hit('save.alone');
      signal.throwIfAborted();
      if (state().phase !== 'saving') throw superseded(this.#name, 'another host');
    }
    // Who goes on from the state needs all that its guest wrote, and who goes on from the shadow only what is committed.
    await disks.keepAll();
    if (remote === undefined || kind !== 'suspended') return {};
    if ((await remote.right.suspend(signal)) === 'superseded') {
      dispatch({ kind: 'superseded' });
      throw superseded(this.#name, 'another host');
    }
    await failpoints.hit('save.on-record');
    return { rightToken: remote.right.suspended };
  }

  /** From here on the guest stands still, also when this fails. */
  async #standStill({
    machine,
    paths,
  }: Instance): Promise<{ readonly deviceState: Buffer; readonly firmware: Uint8Array }> {
    const firmware = await readFirmware(machine, paths.firmware);
    // As in a cut: what QEMU could still write into the guest's memory once its device state is saved stays away.
    for (const link of this.#vm.links()) link.leaveUnread();
    await machine.wake();
    for (const link of this.#vm.links()) link.pauseInput();
    const { stopped, saved } = machine.stopAndSave(paths.deviceState);
    await stopped;
    await saved;
    await this.#vm.options.failpoints.hit('save.paused');
    return { deviceState: readFileSync(paths.deviceState), firmware };
  }

  async #goOn(
    { machine }: Instance,
    { startMs, signal }: { startMs: number; signal: AbortSignal },
  ): Promise<void> {
    // Whose right has ended stands still for that as well.
    await this.#vm.options.remote?.right.regained(signal);
    await machine.cont();
    for (const link of this.#vm.links()) {
      link.readOn();
      link.resumeInput();
    }
    this.#vm.notePause(this.#vm.options.clock.nowMs() - startMs);
  }

  #place(kind: SavedKind): string {
    const { savedIn } = this.#vm.options;
    if (savedIn === undefined) throw noPlaceToSave(this.#name, kind);
    return savedIn[kind];
  }

  get #name(): string {
    return this.#vm.options.spec.name;
  }
}
