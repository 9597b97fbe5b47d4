import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import type { LeaseRecord } from '../../src/lease/lease-record.ts';
import { readRecord } from '../../src/lease/lease-store.ts';
import { ETCD } from './site-etcd.ts';
import type { TwoHosts } from './two-hosts.ts';

const AGAIN_MS = 100;

interface WatchAnswer {
  readonly result?: {
    readonly events?: { readonly kv: { readonly value?: string; readonly mod_revision: string } }[];
  };
}

/** Every record that there ever was of who acts as a VM, in the order of etcd's revisions. */
export class RecordHistory implements AsyncDisposable {
  readonly records: LeaseRecord[] = [];
  readonly #hosts: TwoHosts;
  readonly #following: Promise<void>;
  #child: ChildProcess | undefined;
  #isOver = false;
  #revision = 0;

  constructor(hosts: TwoHosts) {
    this.#hosts = hosts;
    this.#following = this.#follow();
  }

  /** What in it must not be. */
  violations(): string[] {
    const found: string[] = [];
    const holders = new Map<number, string>();
    for (const [index, { token, holder }] of this.records.entries()) {
      const before = this.records[index - 1];
      if (before !== undefined && token < before.token)
        found.push(`token ${token} came after ${before.token}`);
      const known = holders.get(token) ?? holder;
      if (known !== holder) found.push(`token ${token} was held by ${known} and ${holder}`);
      holders.set(token, known);
    }
    return found;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isOver = true;
    this.#child?.kill();
    await this.#following;
  }

  /** etcd may end meanwhile and begin again. */
  async #follow(): Promise<void> {
    while (!this.#isOver) {
      const child = watchRecord(this.#hosts, this.#revision + 1);
      this.#child = child;
      const closed = once(child, 'close');
      if (child.stdout === null) throw new Error('a pipe was asked for');
      createInterface({ input: child.stdout }).on('line', (line) => this.#take(line));
      await closed;
      if (!this.#isOver) await delay(AGAIN_MS);
    }
  }

  #take(line: string): void {
    const { result } = JSON.parse(line) as WatchAnswer;
    for (const { kv } of result?.events ?? []) {
      const revision = Number(kv.mod_revision);
      if (revision <= this.#revision) continue;
      this.#revision = revision;
      if (kv.value !== undefined)
        this.records.push(readRecord(this.#hosts.vm, Buffer.from(kv.value, 'base64').toString()));
    }
  }
}

/** JSON lines of etcd's gateway, until it is killed or etcd ends. */
function watchRecord(hosts: TwoHosts, fromRevision: number): ChildProcess {
  const pki = (file: string) => join(hosts.folder, 'pki', file);
  const key = Buffer.from(`understudy/lease/${hosts.vm}/record`).toString('base64');
  const asked = JSON.stringify({ create_request: { key, start_revision: fromRevision } });
  const shown = ['--cacert', pki('ca.crt'), '--cert', pki('a.crt'), '--key', pki('a.key')];
  const curl = ['curl', '-sN', ...shown, '-d', asked, `${ETCD}/v3/watch`];
  const words = [`--net=/run/netns/${hosts.netns('lan')}`, '--', ...curl];
  return spawn('nsenter', words, { stdio: ['ignore', 'pipe', 'ignore'] });
}
