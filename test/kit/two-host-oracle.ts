import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { systemClock as clock } from '../../src/base/clock.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import type { VmStatus } from '../../src/control/vm-status.ts';
import type { LoadReport } from '../../src/demo/load-generator.ts';
import { type HostPlaces, type HostUsage, usageOf } from './host-usage.ts';
import { PortWatch } from './port-watch.ts';
import { RecordHistory } from './record-history.ts';
import type { Roles } from './two-host-faults.ts';
import { GUEST, type HostName, otherThan, type TwoHosts } from './two-hosts.ts';

const SETTLE_KEY = 'settled';
/** Keys that are not of the load. */
const OWN_KEYS = 1;

export interface Usage {
  /** The host that the VM acts on. */
  readonly acting: HostUsage;
  readonly shadowing: HostUsage;
}

/**
 * Tells from outside whether two hosts kept their promises about a VM: what clients were told, what went over the wire, what
 * was on record, what is in memory. It relies on nothing that a keeper says of itself but for the question whether it is done.
 */
export class TwoHostOracle implements AsyncDisposable {
  readonly #hosts: TwoHosts;
  readonly #ports: PortWatch;
  readonly #history: RecordHistory;
  /** Records that were judged. */
  #judged = 0;
  #holder: string | undefined;

  constructor(hosts: TwoHosts) {
    this.#hosts = hosts;
    const lan = hosts.netns('lan');
    const mac = /lladdr (\S+)/.exec(ip(lan, 'neighbour', 'show', GUEST.host))?.[1];
    if (mac === undefined) throw new Error('nobody has spoken with the guest yet');
    const ports = new Map(
      (['a', 'b'] as const).map((host) => [
        Number(/^(\d+):/.exec(ip(lan, '-o', 'link', 'show', `to-${host}`))?.[1]),
        host,
      ]),
    );
    this.#ports = new PortWatch(lan, { mac, ports });
    this.#history = new RecordHistory(hosts);
  }

  /** How often the right to act has changed hands. */
  get moves(): number {
    const holders = this.#history.records.map(({ holder }) => holder);
    return holders.filter((holder, index) => index > 0 && holder !== holders[index - 1]).length;
  }

  /** It knows what was on record until now: before that nothing can be judged. */
  async begun(): Promise<void> {
    await this.#hosts.eventually('what is on record', () => this.#history.records.length > 0);
  }

  /** Both sides say that the VM is protected, the record says so, and it takes and commits requests. */
  async settled(): Promise<Roles> {
    await this.begun();
    return await this.#hosts.eventually('a VM that is protected', async () => {
      const record = await this.#hosts.record();
      if (record?.mode !== 'in-sync') return undefined;
      const here: HostName = record.holder === 'a' ? 'a' : 'b';
      const there = otherThan(here);
      const before = await this.#agreed({ here, there });
      if (before === undefined) return undefined;
      // As long as nobody acts, nobody answers.
      const isAnswered = await this.#hosts.load.command('INCR', SETTLE_KEY).then(
        () => true,
        () => false,
      );
      if (!isAnswered) return undefined;
      const after = await this.#agreed({ here, there });
      const isOneKeeper = after?.keeperPid === before.keeperPid && after.token === before.token;
      return isOneKeeper && after.epochs.committed > before.epochs.committed ? { here, there } : undefined;
    });
  }

  /** What is wrong, after the load has ended with this report. Empty if nothing is. */
  async judge(roles: Roles, report: LoadReport): Promise<string[]> {
    const found = [...report.errors.map((error) => `a client was told: ${error}`)];
    const { total, survived } = report.connections;
    if (survived < total) found.push(`${total - survived} of ${total} connections were lost`);
    const { lostWrites, examples } = await this.#hosts.load.verify();
    if (lostWrites > 0) found.push(`${lostWrites} acknowledged writes are lost: ${JSON.stringify(examples)}`);
    if (!(await this.#hosts.isSameGuest())) found.push('it is another guest');
    found.push(...this.judgeActing());
    for (const host of [roles.here, roles.there]) {
      const qemus = this.#hosts.qemuPids(host).length;
      if (qemus !== 1) found.push(`${qemus} QEMUs on ${host}`);
    }
    return found;
  }

  /** Whether the VM was seen to send from where it was on record, and nowhere else, since this was last asked. */
  judgeActing(): string[] {
    const records = this.#history.records.slice(this.#judged);
    this.#judged = this.#history.records.length;
    const before = this.#holder === undefined ? [] : [this.#holder];
    const holders = [...before, ...records.map(({ holder }) => holder)].filter(
      (holder, index, all) => holder !== all[index - 1],
    );
    this.#holder = holders.at(-1);
    const runs = this.#ports.take();
    let at = 0;
    for (const { port } of runs) {
      while (at < holders.length && holders[at] !== port) at += 1;
      if (at === holders.length) {
        const sent = runs.map((run) => `${run.frames} from ${run.port}`).join(', ');
        return [
          ...this.#history.violations(),
          `on record were ${holders.join(', ')}, and frames came ${sent}`,
        ];
      }
    }
    return this.#history.violations();
  }

  /** Keys that nobody wrote. */
  async inventedKeys({ ackedWrites }: LoadReport): Promise<number> {
    return Number(await this.#hosts.load.command('DBSIZE')) - OWN_KEYS - ackedWrites;
  }

  usage({ here, there }: Roles): Usage {
    return { acting: usageOf(this.#placesOf(here)), shadowing: usageOf(this.#placesOf(there)) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ports[Symbol.dispose]();
    await this.#history[Symbol.asyncDispose]();
  }

  /** As the keeper on this host says it over its socket. @throws KeeperError when none answers */
  async #status(host: HostName): Promise<VmStatus> {
    const { vm } = this.#hosts;
    const path = join(this.#hosts.runDirectory(host), vm, 'control.sock');
    using client = await ControlClient.connect(path, { vm, clock, connectDeadlineMs: 1000 });
    return await client.status();
  }

  #placesOf(host: HostName): HostPlaces {
    const links: { ifname: string }[] = JSON.parse(ip(this.#hosts.netns(host), '-j', 'link'));
    return {
      runDirectory: this.#hosts.runDirectory(host),
      stateDirectory: join(this.#hosts.folder, host, 'state'),
      memoryDirectory: this.#hosts.memoryOf(host),
      devices: links.map(({ ifname }) => ifname),
    };
  }

  async #agreed({ here, there }: Roles): Promise<VmStatus | undefined> {
    try {
      const acting = await this.#status(here);
      if (acting.phase !== 'protected' || acting.shadow?.host !== there) return undefined;
      const { actsOn, shadow } = await this.#status(there);
      return actsOn === here && shadow?.copiedShare === 1 ? acting : undefined;
    } catch {
      return undefined;
    }
  }
}

function ip(netns: string, ...words: string[]): string {
  return execFileSync('ip', ['-n', netns, ...words], { encoding: 'utf8' });
}
