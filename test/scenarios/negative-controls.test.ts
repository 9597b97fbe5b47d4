import { type ChildProcess, spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { describe, expect, it } from 'vitest';
import { TestVm, until } from '../kit/test-vm.ts';

const DEADLINE_MS = 30_000;
/** The guest quotes it in its refusal: more than anything else that it sends by itself. */
const DATAGRAM_BYTES = 500;

/** A request in one packet that nobody repeats: a datagram to a port where nobody listens. The guest refuses it. */
class Datagram implements Disposable {
  readonly #child: ChildProcess;
  readonly #said: Promise<string>;

  constructor(netns: string) {
    const code = `
      const socket = require('node:dgram').createSocket('udp4');
      setTimeout(() => process.exit(), ${DEADLINE_MS});
      socket.on('error', (error) => { console.log(error.code); process.exit(); });
      socket.connect(9, '10.77.0.2', () => socket.send(Buffer.alloc(${DATAGRAM_BYTES})));`;
    const words = [`--net=/run/netns/${netns}`, '--', process.execPath, '-e', code];
    this.#child = spawn('nsenter', words, { stdio: ['ignore', 'pipe', 'inherit'] });
    if (this.#child.stdout === null) throw new Error('a pipe was asked for');
    this.#said = text(this.#child.stdout);
  }

  /** The guest's answer has arrived. */
  async answered(): Promise<void> {
    expect(await this.#said).toBe('ECONNREFUSED\n');
  }

  /** Gives up waiting. True if an answer had come. */
  async giveUp(): Promise<boolean> {
    this.#child.kill();
    return (await this.#said) !== '';
  }

  [Symbol.dispose](): void {
    this.#child.kill('SIGKILL');
  }
}

/** Adds an entry to a stream. Its id holds the guest's time: a guest that does it again gets another one. */
async function addEntry(vm: TestVm): Promise<string> {
  return String(await vm.load.command('XADD', 'log', '*', 'field', 'value'));
}

async function hasEntry(vm: TestVm, id: string): Promise<boolean> {
  return JSON.stringify(await vm.load.command('XRANGE', 'log', '-', '+')).includes(id);
}

describe('a write whose epoch is never committed', () => {
  it('is not acknowledged before a kill, but by the shadow that did it again', async () => {
    await using vm = await TestVm.start();
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    const { releasedItems } = vm.link('nic0');
    const id = addEntry(vm);
    await until(() => vm.link('nic0').heldItems > 0);
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    expect(vm.link('nic0').releasedItems, 'what left before the kill').toBe(releasedItems);
    cut.release();
    await promoted;
    expect(await hasEntry(vm, await id)).toBe(true);
  });

  it('without the output gate is acknowledged before a kill and lost after it', async () => {
    await using vm = await TestVm.start({ unsafe: { link: { releaseUncommitted: true } } });
    // What was seen of the guest so far need not be the shadow's yet: without the gate, not even that Redis listens.
    const { committed } = vm.status.epochs;
    await until(() => vm.status.epochs.committed > committed + 1);
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    const id = await addEntry(vm);
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    cut.release();
    await promoted;
    expect(await hasEntry(vm, id)).toBe(false);
  });
});

describe('a request that the primary took with it', () => {
  /** Kills the primary after it has answered in an epoch that is sealed and then fails. */
  async function askAndKill(vm: TestVm, datagram: () => Datagram): Promise<Datagram> {
    // What the start of the VM has left on its way.
    const quiet = vm.holdAt('cut.before-resume', () => vm.link('nic0').heldItems === 0);
    await quiet.reached;
    const answer = vm.holdAt('cut.before-resume', () => vm.link('nic0').heldBytes > DATAGRAM_BYTES);
    quiet.release();
    const asked = datagram();
    await answer.reached;
    const promoted = vm.nextEvent('promoted');
    // The epoch cannot become whole without its device state.
    rmSync(vm.deviceStatePath(vm.status.primary));
    vm.signalPrimary('SIGKILL');
    answer.release();
    await promoted;
    return asked;
  }

  it('is handed to the shadow again, which answers it', async () => {
    await using vm = await TestVm.start();
    const { replayedItems } = vm.link('nic0');
    using asked = await askAndKill(vm, () => new Datagram(vm.netns));
    await asked.answered();
    expect(vm.link('nic0').replayedItems).toBeGreaterThan(replayedItems);
  });

  it('without the input log is lost for good', async () => {
    await using vm = await TestVm.start({ unsafe: { link: { forgetInputAtCut: true } } });
    using asked = await askAndKill(vm, () => new Datagram(vm.netns));
    // Later requests, which TCP repeats, are answered, and the shadow would have got this one before them.
    await vm.load.paced({ requests: 5, gapMs: 20 });
    expect(await asked.giveUp()).toBe(false);
  });
});
