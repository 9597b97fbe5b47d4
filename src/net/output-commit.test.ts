import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type EpochId, NO_EPOCH, nextEpoch } from '../epoch/epoch-id.ts';
import { InputLog } from './input-log.ts';
import { OutputGate } from './output-gate.ts';

/**
 * Gate and log around a model of a guest that dies at any moment and goes on from its last committed epoch.
 * The guest reads numbered input and sends numbered output; QEMU is a socket, a queue for what it reads while
 * the VM stands still, and the guest's state.
 */
interface GuestState {
  readonly consumed: readonly number[];
  readonly sent: readonly number[];
}

interface Unsafe {
  readonly releaseUncommitted?: boolean;
  readonly forgetInputAtCut?: boolean;
  /** Asks what QEMU has read only when the VM stands still already. */
  readonly lookAfterStop?: boolean;
}

type Step =
  | { kind: 'arrive' | 'handOver' | 'look' | 'send' | 'commit' | 'abort' | 'die' | 'unprotect' | 'protect' }
  | { kind: 'read'; items: number }
  | { kind: 'cut'; readWhileStopped: number };

const LIMIT_BYTES = 1 << 20;

class World {
  readonly #unsafe: Unsafe;
  readonly #gate: OutputGate;
  readonly #log: InputLog;
  #guest: GuestState = { consumed: [], sent: [] };
  #socket: number[] = [];
  #epoch: EpochId = NO_EPOCH;
  #sealed: { epoch: EpochId; state: GuestState }[] = [];
  #committed: { epoch: EpochId; state: GuestState } | undefined;
  #protected = false;
  #arrived = 0;
  #nextOutput = 0;
  readonly left: number[] = [];

  constructor(unsafe: Unsafe) {
    this.#unsafe = unsafe;
    this.#gate = new OutputGate({
      release: (item) => this.#release(numberOf(item)),
      onHeld: () => {},
      onPressure: () => {},
      limitBytes: LIMIT_BYTES,
      unsafeReleaseUncommitted: unsafe.releaseUncommitted ?? false,
    });
    this.#log = new InputLog({
      onPressure: () => {},
      limitBytes: LIMIT_BYTES,
      unsafeForgetAtCut: unsafe.forgetInputAtCut ?? false,
    });
  }

  do(step: Step): void {
    if (step.kind === 'arrive') this.#log.append(itemOf(this.#arrived++));
    else if (step.kind === 'handOver') this.#handOver();
    else if (step.kind === 'read') this.#read(step.items);
    else if (step.kind === 'look') this.#look();
    else if (step.kind === 'send') this.#send();
    else if (step.kind === 'cut') this.#cut(step.readWhileStopped);
    else if (step.kind === 'commit') this.#commit();
    else if (step.kind === 'abort') this.#abort();
    else if (step.kind === 'die') this.#die();
    else if (step.kind === 'protect') this.#protect();
    else this.#unprotect();
  }

  /** Lets everything that waits come to its end, and looks at the whole story. */
  finish(): void {
    this.#protect();
    this.#handOver();
    this.#read(Number.POSITIVE_INFINITY);
    this.#cut(0);
    while (this.#sealed.length > 0) this.#commit();
    const firstTimes = [...new Set(this.#guest.consumed)];
    expect(firstTimes, 'all input reached the guest, in order').toEqual([...Array(this.#arrived).keys()]);
    expect(this.left, 'all output of the guest left, in order, once').toEqual(this.#guest.sent);
    expect(this.#gate.stats()).toMatchObject({ heldItems: 0, heldBytes: 0 });
  }

  #release(output: number): void {
    this.left.push(output);
    if (this.#protected && this.#committed !== undefined) {
      expect(this.#committed.state.sent, 'the shadow knows of all output that left').toContain(output);
    }
  }

  #handOver(): void {
    for (let item = this.#log.hand(); item !== undefined; item = this.#log.hand())
      this.#socket.push(numberOf(item));
  }

  #read(items: number): void {
    this.#guest = { ...this.#guest, consumed: [...this.#guest.consumed, ...this.#socket.splice(0, items)] };
  }

  #look(): void {
    if (this.#socket.length === 0) this.#log.markRead();
  }

  #send(): void {
    const output = this.#nextOutput++;
    this.#guest = { ...this.#guest, sent: [...this.#guest.sent, output] };
    this.#gate.push(itemOf(output));
  }

  #cut(readWhileStopped: number): void {
    if (!this.#protected) return;
    this.#look();
    const netQueue = this.#socket.splice(0, readWhileStopped);
    if (this.#unsafe.lookAfterStop) this.#look();
    this.#epoch = nextEpoch(this.#epoch);
    this.#sealed.push({ epoch: this.#epoch, state: this.#guest });
    this.#gate.seal(this.#epoch);
    this.#log.seal(this.#epoch);
    this.#guest = { ...this.#guest, consumed: [...this.#guest.consumed, ...netQueue] };
  }

  #commit(): void {
    const sealed = this.#sealed.shift();
    if (sealed === undefined) return;
    this.#committed = sealed;
    this.#gate.commit(sealed.epoch);
    this.#log.commit(sealed.epoch);
  }

  #abort(): void {
    const sealed = this.#sealed.pop();
    if (sealed === undefined) return;
    this.#gate.abort(sealed.epoch);
    this.#log.abort(sealed.epoch);
  }

  #die(): void {
    if (this.#committed === undefined) return;
    this.#guest = this.#committed.state;
    this.#socket = [];
    this.#sealed = [];
    this.#gate.rollBack(this.#committed.epoch, []);
    this.#log.rollBack(this.#committed.epoch);
  }

  #protect(): void {
    this.#protected = true;
    this.#log.startLogging();
    this.#gate.hold();
  }

  #unprotect(): void {
    this.#protected = false;
    this.#committed = undefined;
    this.#gate.pass();
    this.#log.stopLogging();
    while (this.#sealed.length > 0) this.#abort();
  }
}

function itemOf(number: number): Uint8Array {
  return new Uint8Array(new Uint32Array([number]).buffer);
}

function numberOf(item: Uint8Array): number {
  return Buffer.from(item).readUInt32LE(0);
}

const plain = (kind: Exclude<Step['kind'], 'read' | 'cut'>) => fc.constant<Step>({ kind });
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: plain('arrive') },
  { weight: 4, arbitrary: plain('handOver') },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('read' as const), items: fc.nat(3) }) },
  { weight: 2, arbitrary: plain('look') },
  { weight: 4, arbitrary: plain('send') },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('cut' as const), readWhileStopped: fc.nat(3) }) },
  { weight: 3, arbitrary: plain('commit') },
  { weight: 1, arbitrary: plain('abort') },
  { weight: 2, arbitrary: plain('die') },
  { weight: 1, arbitrary: plain('protect') },
  { weight: 1, arbitrary: plain('unprotect') },
);

function story(unsafe: Unsafe): fc.IProperty<[Step[]]> {
  return fc.property(fc.array(anyStep, { maxLength: 60, size: 'max' }), (steps) => {
    const world = new World(unsafe);
    world.do({ kind: 'protect' });
    for (const step of steps) world.do(step);
    world.finish();
  });
}

describe('whatever happens in whatever order', () => {
  test('no output leaves before its commit, and no input or output is lost or reordered', () => {
    fc.assert(story({}), { numRuns: 3000 });
  });

  test('without the output gate, output leaves that the shadow knows nothing of', () => {
    const { failed, error } = outcome({ releaseUncommitted: true });
    expect(failed).toBe(true);
    expect(error).toContain('output');
  });

  test('when the cut forgets what was handed over, input is lost', () => {
    const { failed, error } = outcome({ forgetInputAtCut: true });
    expect(failed).toBe(true);
    expect(error).toContain('all input reached the guest');
  });

  test('when what QEMU reads while the VM stands still counts as read, input is lost', () => {
    const { failed, error } = outcome({ lookAfterStop: true });
    expect(failed).toBe(true);
    expect(error).toContain('all input reached the guest');
  });
});

function outcome(unsafe: Unsafe): { failed: boolean; error: string } {
  const { failed, errorInstance } = fc.check(story(unsafe), { numRuns: 3000 });
  return { failed, error: String(errorInstance) };
}

describe('a gate that promotes', () => {
  const gateFor = (left: string[]) =>
    new OutputGate({
      release: (item) => left.push(Buffer.from(item).toString()),
      onHeld: () => {},
      onPressure: () => {},
      limitBytes: LIMIT_BYTES,
    });
  const epochs = (count: number) => Array.from({ length: count }, (_, index) => (index + 1) as EpochId);

  test('lets the output of the last committed epoch leave when another process had held it', () => {
    const left: string[] = [];
    gateFor(left).rollBack(7 as EpochId, [Buffer.from('a'), Buffer.from('b')]);
    expect(left).toEqual(['a', 'b']);
  });

  test('does not repeat what it has let out itself', () => {
    const left: string[] = [];
    const [first = NO_EPOCH, second = NO_EPOCH] = epochs(2);
    const gate = gateFor(left);
    gate.hold();
    gate.push(Buffer.from('a'));
    gate.seal(first);
    gate.commit(first);
    gate.push(Buffer.from('never happened'));
    gate.seal(second);
    gate.rollBack(first, [Buffer.from('a')]);
    expect(left).toEqual(['a']);
    expect(gate.stats()).toMatchObject({ droppedItems: 1, heldItems: 0 });
  });

  test('lets out what was committed without its knowledge', () => {
    const left: string[] = [];
    const [first = NO_EPOCH] = epochs(1);
    const gate = gateFor(left);
    gate.hold();
    gate.push(Buffer.from('a'));
    gate.seal(first);
    gate.rollBack(first, [Buffer.from('a')]);
    expect(left).toEqual(['a']);
  });
});

describe('bounds', () => {
  test('the gate asks for back-pressure at its limit and ends it at half of it', () => {
    const pressure: boolean[] = [];
    const gate = new OutputGate({
      release: () => {},
      onHeld: () => {},
      onPressure: (pressed) => pressure.push(pressed),
      limitBytes: 10_000,
    });
    gate.hold();
    for (let epoch = 1; epoch <= 4; epoch += 1) {
      gate.push(new Uint8Array(2900));
      gate.seal(epoch as EpochId);
    }
    expect(pressure).toEqual([true]);
    gate.commit(1 as EpochId);
    expect(pressure).toEqual([true]);
    gate.commit(2 as EpochId);
    gate.commit(3 as EpochId);
    expect(pressure).toEqual([true, false]);
  });

  test('items without content count too', () => {
    const pressure: boolean[] = [];
    const log = new InputLog({ onPressure: (pressed) => pressure.push(pressed), limitBytes: 10_000 });
    for (let item = 0; item < 100; item += 1) log.append(new Uint8Array(1));
    expect(pressure).toEqual([true]);
  });

  test('without a shadow, input that QEMU has read is not kept', () => {
    const log = new InputLog({ onPressure: () => {}, limitBytes: 10_000 });
    log.append(itemOf(1));
    log.append(itemOf(2));
    log.hand();
    log.markRead();
    expect(log.stats()).toMatchObject({ loggedItems: 1, queuedItems: 1 });
  });
});
