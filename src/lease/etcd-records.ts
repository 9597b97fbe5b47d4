import { readFileSync } from 'node:fs';
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { text } from 'node:stream/consumers';
import { z } from 'zod';
import { messageOf } from '../base/errors.ts';
import { type ActingRecord, type ActingRecords, type FoundRecord, parseRecord } from './acting-records.ts';
import { LeaseError } from './lease-error.ts';

const PREFIX = '/understudy/acting/';
const DEADLINE_MS = 2000;
const ANSWER_BYTES_MAX = 64 * 1024;

export interface EtcdOptions {
  /** E.g. https://10.0.0.1:2379; asked in turn when one does not answer. */
  readonly endpoints: readonly string[];
  readonly ca?: string | undefined;
  readonly certificate?: string | undefined;
  readonly key?: string | undefined;
  readonly deadlineMs?: number;
}

const rangeSchema = z.object({
  kvs: z.array(z.object({ value: z.string(), mod_revision: z.string() })).default([]),
});
const txnSchema = z.object({ succeeded: z.boolean().default(false) });

/**
 * Records in etcd, over its JSON gateway (docs: "Why gRPC gateway"). Reads are linearizable, which is etcd's default, and a
 * swap is a transaction that compares the revision.
 */
export class EtcdRecords implements ActingRecords {
  readonly #endpoints: readonly string[];
  readonly #deadlineMs: number;
  readonly #secure: Agent;
  readonly #plain = new HttpAgent({ keepAlive: true });
  /** The one that answered last. */
  #current = 0;

  /** @throws LeaseError LEASE_STORE_AWAY where a file cannot be read */
  constructor({ endpoints, ca, certificate, key, deadlineMs = DEADLINE_MS }: EtcdOptions) {
    this.#endpoints = endpoints;
    this.#deadlineMs = deadlineMs;
    try {
      this.#secure = new Agent({
        keepAlive: true,
        ca: ca && readFileSync(ca),
        cert: certificate && readFileSync(certificate),
        key: key && readFileSync(key),
      });
    } catch (cause) {
      throw away(messageOf(cause), cause);
    }
  }

  async read(vm: string): Promise<FoundRecord | undefined> {
    const { kvs } = rangeSchema.parse(await this.#ask('range', { key: base64(PREFIX + vm) }));
    const [found] = kvs;
    if (found === undefined) return undefined;
    const json = Buffer.from(found.value, 'base64').toString('utf8');
    return { record: parseRecord(json, vm), revision: found.mod_revision };
  }

  async swap(
    vm: string,
    { revision, record }: { revision: string | undefined; record: ActingRecord },
  ): Promise<boolean> {
    const key = base64(PREFIX + vm);
    const answer = await this.#ask('txn', {
      // A key that is not there has revision 0.
      compare: [{ key, target: 'MOD', result: 'EQUAL', mod_revision: revision ?? '0' }],
      success: [{ request_put: { key, value: base64(JSON.stringify(record)) } }],
    });
    return txnSchema.parse(answer).succeeded;
  }

  close(): void {
    this.#secure.destroy();
    this.#plain.destroy();
  }

  /** Each endpoint once, within one deadline. */
  async #ask(method: 'range' | 'txn', body: unknown): Promise<unknown> {
    const signal = AbortSignal.timeout(this.#deadlineMs);
    let last: unknown;
    for (let tries = 0; tries < this.#endpoints.length && !signal.aborted; tries += 1) {
      const endpoint = this.#endpoints[this.#current % this.#endpoints.length] ?? '';
      try {
        const perEndpoint = AbortSignal.timeout(Math.max(100, this.#deadlineMs / this.#endpoints.length));
        return await this.#post(
          new URL(`/v3/kv/${method}`, endpoint),
          body,
          AbortSignal.any([signal, perEndpoint]),
        );
      } catch (cause) {
        last = cause;
        this.#current = (this.#current + 1) % this.#endpoints.length;
        // A swap that may have happened is not repeated elsewhere: its repetition would be refused because of itself.
        if (method === 'txn') break;
      }
    }
    throw away(messageOf(last), last);
  }

  async #post(url: URL, body: unknown, signal: AbortSignal): Promise<unknown> {
    const isSecure = url.protocol === 'https:';
    const options = { method: 'POST', signal, agent: isSecure ? this.#secure : this.#plain };
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const asked = isSecure ? request(url, options, resolve) : httpRequest(url, options, resolve);
    asked.on('error', reject);
    asked.end(JSON.stringify(body));
    const response = await promise;
    if (Number(response.headers['content-length'] ?? 0) > ANSWER_BYTES_MAX) {
      response.destroy();
      throw new Error('an answer that is too long');
    }
    const answer = await text(response);
    if (response.statusCode !== 200)
      throw new Error(`status ${response.statusCode}: ${answer.slice(0, 200)}`);
    return JSON.parse(answer);
  }
}

function base64(value: string): string {
  return Buffer.from(value, 'utf8').toString('base64');
}

function away(why: string, cause: unknown): LeaseError {
  return new LeaseError('LEASE_STORE_AWAY', `the store of leases does not answer: ${why}`, {
    hint: 'Look whether most of its members run and can be reached.',
    cause,
  });
}
