import { type DemoGuest, ensureDemoGuest } from '../guest/build.ts';
import { orAborted } from '../src/demo/abortable-wait.ts';
import { DemoNetwork } from '../src/demo/demo-network.ts';
import { DemoVm } from '../src/demo/demo-vm.ts';
import { RedisLoad } from '../src/demo/redis-load.ts';
import type { BenchRun } from './harness.ts';

export interface RedisVmOptions {
  readonly guest: DemoGuest;
  readonly isProtected: boolean;
  readonly disks?: readonly object[];
}

/** The demo guest with Redis, run by a keeper process as a user would run it, in a network of its own. */
export class RedisVm implements AsyncDisposable {
  readonly vm: DemoVm;
  readonly network: DemoNetwork;
  /** Clients in a process and, with TAP, in the network namespace of the VM. */
  readonly load: RedisLoad;
  /** Number of the event and the host's time when protection began; undefined without a shadow. */
  readonly protectedAt: { readonly seq: number; readonly wallMs: number } | undefined;
  readonly #run: BenchRun;
  readonly #owned: AsyncDisposableStack;

  private constructor(run: BenchRun, parts: Parts) {
    this.#run = run;
    this.vm = parts.vm;
    this.network = parts.network;
    this.load = parts.load;
    this.protectedAt = parts.protectedAt;
    this.#owned = parts.owned;
  }

  /** Resolves when Redis answers and, if the VM is to have a shadow, that is in sync. */
  static async start(run: BenchRun, options: RedisVmOptions): Promise<RedisVm> {
    const { guest, isProtected, disks = [] } = options;
    const { clock, signal } = run.options;
    run.progress(isProtected ? 'starting a VM with a shadow' : 'starting the same VM without a shadow');
    const name = `bench-${process.pid}-${isProtected ? 'protected' : 'alone'}`;
    await using starting = new AsyncDisposableStack();
    const network = starting.use(await DemoNetwork.open({ name }));
    const spec = { shadow: { enabled: isProtected }, disks };
    const vm = starting.use(await DemoVm.start({ name, guest, network, clock, signal, spec }));
    const load = starting.use(await RedisLoad.start({ ...network.redis, clock, signal }));
    const event = isProtected ? await vm.untilProtected() : undefined;
    const protectedAt = event && { seq: event.seq, wallMs: Date.parse(event.time) };
    const { accel, dirtyLog } = await vm.status();
    run.describe({
      machine: { accel, ...(isProtected && { dirtyLog }) },
      versions: { guestKernel: guest.kernelRelease, redis: guest.redisVersion },
    });
    return new RedisVm(run, { vm, network, load, protectedAt, owned: starting.move() });
  }

  /** Given up when the person interrupts. */
  wait<Result>(work: Promise<Result>): Promise<Result> {
    return orAborted(work, this.#run.options.signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}

interface Parts {
  readonly vm: DemoVm;
  readonly network: DemoNetwork;
  readonly load: RedisLoad;
  readonly protectedAt: { readonly seq: number; readonly wallMs: number } | undefined;
  readonly owned: AsyncDisposableStack;
}

export function demoGuest({ options }: BenchRun): Promise<DemoGuest> {
  return orAborted(ensureDemoGuest({ onProgress: options.onProgress }), options.signal);
}
