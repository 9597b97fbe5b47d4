import type { Trace } from '../base/trace.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { bootId } from '../control/process-identity.ts';
import type { EventLog } from './event-log.ts';
import type { KeeperFleet } from './keeper-fleet.ts';
import type { StateDatabase } from './state-database.ts';
import type { VmInventory, VmOutline } from './vm-inventory.ts';
import type { VmTokens } from './vm-tokens.ts';

export interface KeeperLedgerOptions {
  readonly database: StateDatabase;
  readonly inventory: VmInventory;
  readonly events: EventLog;
  readonly tokens: VmTokens;
  readonly fleet: KeeperFleet;
}

/** A VM with the version of the specification that it runs with. */
type StartedVm = Pick<VmOutline, 'name' | 'version'>;

/**
 * What a host writes down before a keeper is started and after it has ended, in an order that makes sense of whatever
 * is found by a daemon that comes after one that was killed in between.
 */
export class KeeperLedger {
  readonly #options: KeeperLedgerOptions;

  constructor(options: KeeperLedgerOptions) {
    this.#options = options;
  }

  /**
   * Written down before the keeper is started: a daemon that is killed meanwhile leaves a VM that was started. Whether
   * it got so far, and how it ended, is what its keeper tells. `recorded` is the token in a run directory that was
   * left. Returns the token that the keeper goes on above.
   */
  prepareStart(vm: StartedVm, { recorded }: { recorded: number | undefined }): number {
    const { database, tokens, fleet } = this.#options;
    const { name } = vm;
    const known = fleet.endOf(name)?.token ?? recorded;
    if (known !== undefined) tokens.end(name, known);
    // Else it might be taken for the end of the keeper that is started now.
    fleet.forgetEnd(name);
    return database.transaction(() => {
      this.noteStarted(vm);
      return tokens.begin(name);
    });
  }

  /** One that refused took back what it had begun; of one that was killed nobody knows how far it came. */
  noteFailedStart(name: string, thrown: unknown): void {
    const { database, inventory, tokens, fleet } = this.#options;
    const end = fleet.endOf(name);
    const wasKilled = thrown instanceof KeeperError && thrown.code === 'KEEPER_START_FAILED';
    database.transaction(() => {
      inventory.noteEnded(name);
      if (end !== undefined || !wasKilled) tokens.end(name, end?.token ?? 0);
    });
  }

  noteStarted({ name, version }: StartedVm): void {
    this.#options.inventory.noteStarted(name, { version, bootId: bootId() });
  }

  /** Nothing of a VM is left. `desired` where it is to be so from now on. */
  noteEnded(name: string, { desired }: { desired?: 'stopped' } = {}): void {
    const { database, inventory, tokens, fleet, events } = this.#options;
    const end = fleet.endOf(name);
    database.transaction(() => {
      if (desired !== undefined) inventory.desire(name, desired);
      inventory.noteEnded(name);
      if (end !== undefined) tokens.end(name, end.token);
      events.publish('ended', { vm: name, facts: { reason: end?.reason ?? 'unknown' } });
    });
    // After the note of it: whoever is killed in between finds it again.
    fleet.forgetEnd(name);
  }

  /** The VM itself is no more, nor what is `removed` of its saved states. */
  forget(name: string, facts: { readonly removed: readonly string[]; readonly trace?: Trace }): void {
    const { database, inventory, tokens, fleet, events } = this.#options;
    fleet.forgetEnd(name);
    database.transaction(() => {
      // Before it is forgotten whose it was.
      events.publish('deleted', { vm: name, facts });
      inventory.forget(name);
      tokens.forget(name);
    });
  }
}
