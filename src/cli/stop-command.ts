import { ApiError } from '../api/api-error.ts';
import { systemClock as clock } from '../base/clock.ts';
import type { Termination } from '../config/vm-spec-schema.ts';
import type { ControlClient } from '../control/control-client.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { endProcess, type ProcessIdentity, waitForEnd } from '../control/process-identity.ts';
import { type FoundVm, RunDirectory } from '../control/run-directory.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import type { Output } from './output.ts';
import { actingHost, findVm, openControl } from './vm-connection.ts';

const FORCED_STOP_DEADLINE_MS = 5000;
const KEEPER_END_DEADLINE_MS = 10_000;

/** Ends a VM and waits until nothing is left of it, also where its keeper is lost. */
export async function stop(
  name: string,
  { force, then }: { force: boolean; then?: Termination },
  out: Output,
): Promise<number> {
  const vm = findVm(name);
  if (vm.keeper === 'lost') await tellHost(name);
  const how =
    vm.keeper === 'lost' ? await clearAway(vm) : await endWithKeeper(vm, { force, termination: then, out });
  out.result({ name, ...how }, () => endingText(name, how));
  return EXIT_CODES.ok.code;
}

function endingText(name: string, { outcome, actsOn, endedPids }: Ending): string {
  if (actsOn !== undefined)
    return `the shadow of ${name} has left this host; ${name} goes on on ${actsOn}: to end it, stop it there`;
  if (endedPids.length === 0) return `${name} ${outcome}`;
  return `${name} ${outcome}; ended process ${endedPids.join(', ')}`;
}

interface Ending {
  readonly outcome: 'stopped' | 'shadow ended' | 'cleared away';
  /** The host where the VM goes on, of which only the shadow was here. */
  readonly actsOn?: string;
  /** Processes that had outlived their keeper. */
  readonly endedPids: readonly number[];
}

interface EndOptions {
  readonly force: boolean;
  readonly termination: Termination | undefined;
  readonly out: Output;
}

async function endWithKeeper(vm: FoundVm, { force, termination, out }: EndOptions): Promise<Ending> {
  const asks = !force && termination !== 'suspend';
  const asked = actingHost(vm.name);
  const keeper = vm.record?.keeper;
  try {
    using _watch = force ? undefined : new SilenceWatch(vm.name, out);
    // With --force nobody waits for a keeper that hangs.
    if (asks && (await asked) !== undefined) out.progress(`asking for leave to end the shadow of ${vm.name}`);
    else out.progress(asks ? `asking ${vm.name} to power off` : `ending ${vm.name}`);
    using _progress = new SavingProgress(vm.name, out);
    using control = await openControl(vm.name);
    const isQuick = force && (termination ?? 'remove') === 'remove';
    await control.stop({
      graceful: !force,
      ...(termination !== undefined && { termination }),
      ...(isQuick && { deadlineMs: FORCED_STOP_DEADLINE_MS }),
    });
  } catch (thrown) {
    const isSilent = thrown instanceof KeeperError && thrown.code === 'KEEPER_NO_ANSWER';
    if (!isSilent || !force || keeper === undefined) throw thrown;
    return await killKeeper(vm, keeper);
  }
  // The answer comes before the keeper has put everything away.
  if (keeper !== undefined) await waitForEnd(keeper, { deadlineMs: KEEPER_END_DEADLINE_MS, clock });
  const actsOn = await asked;
  return actsOn === undefined
    ? { outcome: 'stopped', endedPids: [] }
    : { outcome: 'shadow ended', actsOn, endedPids: [] };
}

/** Shows how far a keeper has come with writing the state of its VM. */
class SavingProgress implements Disposable {
  #control: ControlClient | undefined;
  #over = false;

  constructor(name: string, out: Output) {
    // It goes away with the keeper, and nothing depends on it.
    this.#show(name, out).catch(() => {});
  }

  async #show(name: string, out: Output): Promise<void> {
    using control = await openControl(name);
    this.#control = control;
    if (this.#over) return;
    const since = await lastEventOf(control);
    for await (const { kind, facts } of control.events({ since, follow: true })) {
      if (kind !== 'saving') continue;
      out.progress(`saving the state of ${name}`, `${Math.floor(100 * Number(facts.share))} %`);
    }
  }

  [Symbol.dispose](): void {
    this.#over = true;
    this.#control?.[Symbol.dispose]();
  }
}

async function lastEventOf(control: ControlClient): Promise<number> {
  let last = 0;
  for await (const { seq } of control.events({ since: 0, follow: false })) last = seq;
  return last;
}

/**
 * Tells whoever waits for a keeper that it hangs. The answer to `stop` may take long, because a guest powers off
 * meanwhile; the one to another question may not.
 */
class SilenceWatch implements Disposable {
  #over = false;

  constructor(name: string, out: Output) {
    // Waits for 5 seconds, and never longer than `stop` itself.
    openControl(name)
      .then(async (control) => {
        using asked = control;
        await asked.status();
      })
      .catch((thrown) => {
        const isSilent = thrown instanceof KeeperError && thrown.code === 'KEEPER_NO_ANSWER';
        if (isSilent && !this.#over) out.progress('no answer; --force ends it');
      });
  }

  [Symbol.dispose](): void {
    this.#over = true;
  }
}

/** For a keeper that hangs. */
async function killKeeper(vm: FoundVm, keeper: ProcessIdentity): Promise<Ending> {
  await tellHost(vm.name);
  await endProcess(keeper, { deadlineMs: KEEPER_END_DEADLINE_MS, clock });
  return await clearAway(vm);
}

/** To a host that owns it, what is gone and said nothing is to be started again. */
async function tellHost(name: string): Promise<void> {
  try {
    await hostClient().call('stopVm', { params: { name }, body: { graceful: false } });
  } catch (thrown) {
    const code = thrown instanceof ApiError ? (thrown.code as string) : '';
    if (code !== 'API_UNREACHABLE' && code !== 'HOST_VM_UNKNOWN') throw thrown;
  }
}

async function clearAway({ name }: FoundVm): Promise<Ending> {
  const sweep = await RunDirectory.sweep(name, { clock });
  return { outcome: 'cleared away', endedPids: sweep.kind === 'swept' ? sweep.endedPids : [] };
}
