import { z } from 'zod';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { type CallOutcome, type EtcdAccess, EtcdGateway } from './etcd-gateway.ts';
import { LeaseError } from './lease-error.ts';
import type { StoredLease, SwapOutcome } from './lease-record.ts';
import { checkedName, type LeaseStore, type LeaseWrite, readRecord, writeRecord } from './lease-store.ts';

const WATCH_RETRY_MS = 500;

export interface EtcdLeaseStoreOptions extends EtcdAccess {
  /** Whole seconds: etcd counts in them. */
  readonly holdTtlMs: number;
  /** Where the keys begin: several installations may share an etcd. */
  readonly prefix?: string;
  readonly clock: Clock;
}

/** int64 is text in etcd's JSON, and a figure that is zero is left out. */
const integer = z.coerce.number().pipe(z.int()).default(0);
const valueSchema = z.object({ key: z.string(), value: z.string().default(''), mod_revision: integer });
const txnSchema = z.object({
  header: z.object({ revision: integer }),
  succeeded: z.boolean().default(false),
  responses: z
    .array(z.object({ response_range: z.object({ kvs: z.array(valueSchema).default([]) }).optional() }))
    .default([]),
});
const grantSchema = z.object({ ID: z.string().regex(/^-?\d+$/), TTL: integer });

type Txn = z.infer<typeof txnSchema>;

interface Seen extends StoredLease {
  /** Of the hold: whose it is, and which write put it there. */
  readonly heldToken: number | undefined;
  readonly holdRevision: number;
}

/**
 * Two keys for each VM: the record, and the hold of a holder that is alone, which hangs on an etcd lease. The record must
 * not go with the lease: tokens would begin anew.
 *
 * A hold is renewed by a new etcd lease and a transaction that moves it there, never by etcd's keep-alive: that is
 * answered by whoever believes to be the leader, and one that was stopped for a while believes it wrongly when it goes
 * on. All that is used here goes through etcd's log.
 */
export class EtcdLeaseStore implements LeaseStore {
  readonly #gateway: EtcdGateway;
  readonly #options: EtcdLeaseStoreOptions;
  readonly #ttlSeconds: number;

  /** @throws LeaseError LEASE_STORE_UNUSABLE */
  constructor(options: EtcdLeaseStoreOptions) {
    this.#ttlSeconds = options.holdTtlMs / 1000;
    if (!Number.isInteger(this.#ttlSeconds) || this.#ttlSeconds < 1) {
      throw new LeaseError(
        'LEASE_STORE_UNUSABLE',
        `a hold of ${options.holdTtlMs} ms is no whole number of seconds`,
        {
          hint: 'etcd counts leases in seconds.',
        },
      );
    }
    this.#gateway = new EtcdGateway(options);
    this.#options = options;
  }

  async read(vm: string): Promise<StoredLease> {
    return publicPart(await this.#look(vm));
  }

  async swap(vm: string, { expectedRevision, record, onlyIfUnheld }: LeaseWrite): Promise<SwapOutcome> {
    const keys = this.#keys(vm);
    const lease = record.mode === 'alone' ? await this.#granted().catch(noneWhereAway) : undefined;
    if (record.mode === 'alone' && lease === undefined) return { kind: 'unreachable' };
    const compare = [
      { key: keys.record, target: 'MOD', result: 'EQUAL', mod_revision: String(expectedRevision) },
      ...(onlyIfUnheld ? [{ key: keys.hold, target: 'CREATE', result: 'EQUAL', create_revision: '0' }] : []),
    ];
    const hold =
      lease === undefined
        ? { request_delete_range: { key: keys.hold } }
        : { request_put: { key: keys.hold, value: encoded(String(record.token)), lease } };
    const success = [{ request_put: { key: keys.record, value: encoded(writeRecord(record)) } }, hold];
    const outcome = await this.#gateway.call('/v3/kv/txn', { compare, success, failure: ranges(keys) });
    if (outcome.kind === 'unsent') return { kind: 'unreachable' };
    if (outcome.kind === 'unknown') return { kind: 'unknown' };
    const txn = parsed(txnSchema, outcome.body);
    if (txn === undefined) return { kind: 'unknown' };
    if (txn.succeeded) return { kind: 'swapped', revision: txn.header.revision };
    return { kind: 'lost', stored: publicPart(seen(vm, txn)) };
  }

  async renew(vm: string, { token }: { token: number }): Promise<'renewed' | 'refused'> {
    const keys = this.#keys(vm);
    const lease = await this.#granted();
    const now = await this.#look(vm);
    if (now.heldToken !== token || now.record?.token !== token) return 'refused';
    // Only what was seen is moved: a renewal that is late must not put its lease in the place of a younger one.
    const outcome = await this.#gateway.call('/v3/kv/txn', {
      compare: [{ key: keys.hold, target: 'MOD', result: 'EQUAL', mod_revision: String(now.holdRevision) }],
      success: [{ request_put: { key: keys.hold, value: encoded(String(token)), lease } }],
      failure: ranges(keys),
    });
    const txn = this.#answered(txnSchema, outcome);
    if (txn.succeeded) return 'renewed';
    if (seen(vm, txn).heldToken !== token) return 'refused';
    throw away('another renewal came in between', undefined);
  }

  watch(vm: string, changed: () => void): Disposable {
    const range_end = encoded(`${this.#base(vm)}0`);
    const body = { create_request: { key: encoded(`${this.#base(vm)}/`), range_end } };
    let isOver = false;
    let stream: Disposable | undefined;
    let cancel = () => {};
    const open = () => {
      if (isOver) return;
      stream = this.#gateway.stream('/v3/watch', body, {
        // The first line says that it watches: what happened before has to be looked at as well.
        line: () => changed(),
        ended: () => {
          cancel = this.#options.clock.after(WATCH_RETRY_MS, open);
        },
      });
    };
    open();
    return {
      [Symbol.dispose]: () => {
        isOver = true;
        cancel();
        stream?.[Symbol.dispose]();
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#gateway[Symbol.dispose]();
  }

  /** A transaction that only reads is linearizable as well, and shows both keys as of one moment. */
  async #look(vm: string): Promise<Seen> {
    const body = { compare: [], success: ranges(this.#keys(vm)), failure: [] };
    return seen(vm, this.#answered(txnSchema, await this.#gateway.call('/v3/kv/txn', body)));
  }

  /** A lease that begins now. One too many ends by itself. @throws LeaseError where it is not known that there is one */
  async #granted(): Promise<string> {
    const outcome = await this.#gateway.call('/v3/lease/grant', { TTL: String(this.#ttlSeconds) });
    const { TTL, ID } = this.#answered(grantSchema, outcome);
    if (TTL < this.#ttlSeconds) throw away('it gives out no lease', undefined);
    return ID;
  }

  #answered<Schema extends z.ZodType>(schema: Schema, outcome: CallOutcome): z.infer<Schema> {
    if (outcome.kind !== 'answered') throw away('no node answers', outcome.cause);
    const body = parsed(schema, outcome.body);
    if (body === undefined) throw away('its answer makes no sense', undefined);
    return body;
  }

  #base(vm: string): string {
    return `${this.#options.prefix ?? 'understudy'}/lease/${checkedName(vm)}`;
  }

  #keys(vm: string): Keys {
    const base = this.#base(vm);
    return { record: encoded(`${base}/record`), hold: encoded(`${base}/hold`) };
  }
}

interface Keys {
  readonly record: string;
  readonly hold: string;
}

function ranges(keys: Keys) {
  return [{ request_range: { key: keys.record } }, { request_range: { key: keys.hold } }];
}

function seen(vm: string, txn: Txn): Seen {
  const [record, hold] = txn.responses.map((response) => response.response_range?.kvs[0]);
  return {
    record: record === undefined ? undefined : readRecord(vm, decoded(record.value)),
    revision: record?.mod_revision ?? 0,
    isHeld: hold !== undefined,
    heldToken: hold === undefined ? undefined : Number(decoded(hold.value)),
    holdRevision: hold?.mod_revision ?? 0,
  };
}

function publicPart({ record, revision, isHeld, holdRevision }: Seen): StoredLease {
  return { record, revision, isHeld, ...(isHeld && { holdRevision }) };
}

function parsed<Schema extends z.ZodType>(schema: Schema, body: unknown): z.infer<Schema> | undefined {
  const result = schema.safeParse(body);
  return result.success ? result.data : undefined;
}

function away(why: string, cause: unknown): LeaseError {
  const reason = cause === undefined ? '' : ` (${shortly(cause)})`;
  return new LeaseError('LEASE_STORE_AWAY', `etcd is away: ${why}${reason}`, {
    hint: 'VMs in sync run on; nothing is taken over until most of its nodes answer again.',
    cause,
  });
}

/** OpenSSL's messages are a line of numbers and paths of its sources; `reason` is what they are about. */
function shortly(cause: unknown): string {
  const { reason } = Object(cause);
  return typeof reason === 'string' ? reason : messageOf(cause);
}

function noneWhereAway(thrown: unknown): undefined {
  if (!(thrown instanceof LeaseError) || thrown.code !== 'LEASE_STORE_AWAY') throw thrown;
}

function encoded(text: string): string {
  return Buffer.from(text, 'utf8').toString('base64');
}

function decoded(text: string): string {
  return Buffer.from(text, 'base64').toString('utf8');
}
