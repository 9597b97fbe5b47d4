import { InvariantViolation } from '../base/assert.ts';
import type { ConditionWaiters } from '../base/condition-waiters.ts';
import { errorFacts, messageOf, UnderstudyError } from '../base/errors.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type {
  Limited,
  LimitStatus,
  LimitsControl,
  LimitsOrder,
  LimitsStatus,
  StandingLimits,
} from '../control/limits-status.ts';
import type { GuestLink } from '../net/guest-link.ts';
import { isActing, isEnding, type ProtectionState } from '../shadow/protection.ts';
import { CpuLimit } from './cpu-limit.ts';
import { DiskLimit } from './disk-limit.ts';
import type { Instance } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { LimitActuator } from './limit-actuator.ts';
import type { MemoryArrival } from './memory-arrival.ts';
import { MemoryLimit } from './memory-limit.ts';
import { MemoryReadiness } from './memory-readiness.ts';
import { NetLimit } from './net-limit.ts';
import { isStopping } from './refusals.ts';

/** What limits need of the keeper. */
export interface LimitedVm {
  readonly options: Pick<
    KeeperOptions,
    'spec' | 'clock' | 'runDirectory' | 'failpoints' | 'cpuShareMax' | 'log'
  >;
  readonly waiters: ConditionWaiters;
  readonly state: () => ProtectionState;
  readonly primary: () => Instance | undefined;
  readonly links: () => readonly GuestLink[];
  readonly memory: Pick<MemoryArrival, 'isWhole'>;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
}

const NO_LIMITS: StandingLimits = {
  ...{ cpuMillicores: null, memoryBytes: null, memoryReadyBytes: null },
  ...{ diskBytesPerSecond: null, netBytesPerSecond: null },
};
const ALL = Object.keys(NO_LIMITS) as Limited[];

/**
 * What one VM may use, whichever of its QEMUs acts. What was ordered holds for each that comes to act, also under the next
 * keeper of a VM that goes on; a standby has a small share of its own until then.
 */
export class VmLimits implements LimitsControl {
  readonly #vm: LimitedVm;
  readonly #actuators: Readonly<Record<Limited, LimitActuator>>;
  #standing: StandingLimits;
  /** One order at a time. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(vm: LimitedVm) {
    this.#vm = vm;
    this.#standing = vm.options.runDirectory.limits ?? NO_LIMITS;
    this.#actuators = {
      cpuMillicores: new CpuLimit({ shareMax: vm.options.cpuShareMax }),
      netBytesPerSecond: new NetLimit(vm.links),
      diskBytesPerSecond: new DiskLimit(),
      memoryBytes: new MemoryLimit({
        ...{ clock: vm.options.clock, maxBytes: vm.options.spec.memoryBytes },
        isProtected: () => vm.state().wanted,
      }),
      memoryReadyBytes: new MemoryReadiness(vm),
    };
  }

  limits(order: LimitsOrder): Promise<LimitsStatus> {
    const answer = this.#last.then(() => this.#carryOut(order));
    this.#last = answer.catch(() => {});
    return answer;
  }

  /** This QEMU acts from now on. Whatever goes wrong is told: no limit is worth a takeover that does not happen. */
  enforce(instance: Instance): void {
    const ordered = ALL.filter((resource) => this.#standing[resource] !== null);
    for (const resource of ordered) {
      // At once where that is possible: nothing shall run unlimited for a turn of the event loop.
      const set = async () => this.#actuators[resource].set(instance, this.#standing[resource]);
      set().catch((thrown) => {
        if (thrown instanceof InvariantViolation) throw thrown;
        if (this.#vm.primary() !== instance) return;
        this.#vm.publish('limit-lost', {
          resource,
          limit: this.#standing[resource],
          instance: instance.number,
          ...errorFacts(thrown),
        });
      });
    }
  }

  async #carryOut(order: LimitsOrder): Promise<LimitsStatus> {
    const status: Partial<Record<Limited, LimitStatus>> = {};
    const before = this.#standing;
    for (const resource of ALL) {
      const asked = order[resource];
      status[resource] = asked === undefined ? await this.#read(resource) : await this.#set(resource, asked);
    }
    const changed = ALL.filter((resource) => this.#standing[resource] !== before[resource]);
    if (changed.length > 0) {
      this.#record();
      const limits = Object.fromEntries(changed.map((resource) => [resource, this.#standing[resource]]));
      this.#vm.publish('limits', limits);
    }
    return status as LimitsStatus;
  }

  async #read(resource: Limited): Promise<LimitStatus> {
    const instance = await this.#acting();
    const wanted = this.#standing[resource];
    try {
      return { wanted, inForce: await this.#actuators[resource].read(instance) };
    } catch (thrown) {
      return { wanted, inForce: null, ...(wanted !== null && { problem: problemOf(thrown) }) };
    }
  }

  async #set(resource: Limited, wanted: number | null): Promise<LimitStatus> {
    const { failpoints } = this.#vm.options;
    const before = this.#standing;
    try {
      const actuator = this.#actuators[resource];
      const instance = await this.#acting();
      // First: one that comes to act meanwhile gets it from here.
      this.#standing = { ...before, [resource]: wanted };
      const expected = await actuator.set(instance, wanted);
      await failpoints.hit('limits.before-read-back');
      const inForce = await actuator.read(await this.#acting());
      if (!isAsExpected(actuator, { expected, inForce })) throw notTaken(inForce);
      return { wanted, inForce };
    } catch (thrown) {
      const problem = problemOf(thrown);
      // What cannot be limited has no limit.
      if (wanted === null && problem.code === 'KEEPER_LIMIT_IMPOSSIBLE') return { wanted, inForce: null };
      this.#standing = before;
      await this.#rollBack(resource);
      const { inForce } = await this.#read(resource);
      return { wanted, inForce, problem };
    }
  }

  async #rollBack(resource: Limited): Promise<void> {
    try {
      await this.#actuators[resource].set(await this.#acting(), this.#standing[resource]);
    } catch (thrown) {
      this.#vm.options.log.warn('a limit is not what it was', { resource, error: messageOf(thrown) });
    }
  }

  /** The QEMU that acts, once a takeover under way has come to its end. */
  async #acting(): Promise<Instance> {
    const { waiters, state, primary, options } = this.#vm;
    await waiters.until(() => isActing(state()) || isEnding(state()));
    const instance = primary();
    if (instance === undefined || isEnding(state())) throw isStopping(options.spec.name);
    return instance;
  }

  #record(): void {
    const { runDirectory, log } = this.#vm.options;
    try {
      runDirectory.record({ limits: this.#standing });
    } catch (cause) {
      log.warn('the next keeper will not know these limits', { error: messageOf(cause) });
    }
  }
}

function isAsExpected(
  { isLowerBound = false }: LimitActuator,
  { expected, inForce }: { readonly expected: number | null; readonly inForce: number | null },
): boolean {
  return isLowerBound ? (inForce ?? 0) >= (expected ?? 0) : inForce === expected;
}

function notTaken(inForce: number | null): KeeperError {
  return new KeeperError('KEEPER_LIMIT_FAILED', `it was set, and ${inForce ?? 'no limit'} was read back`, {
    hint: 'Something else manages what is limited here: keep it away from the VM.',
  });
}

/** Whatever it was, the answer is for all resources. A fault of ours ends the keeper, as everywhere. */
function problemOf(thrown: unknown): NonNullable<LimitStatus['problem']> {
  if (thrown instanceof InvariantViolation) throw thrown;
  const code = thrown instanceof UnderstudyError ? thrown.code : 'KEEPER_INTERNAL';
  return { code, message: messageOf(thrown) };
}
