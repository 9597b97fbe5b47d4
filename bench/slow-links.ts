import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { Failpoints } from '../src/base/failpoint.ts';
import { PAGE_BYTES } from '../src/base/units.ts';
import { epochId } from '../src/epoch/epoch-id.ts';
import { Mapping } from '../src/linux/mapping.ts';
import { GuestMemory } from '../src/memory/guest-memory.ts';
import { mergeRuns } from '../src/memory/page-runs.ts';
import { EpochReceiver } from '../src/replication/epoch-receiver.ts';
import { PageSender } from '../src/replication/page-sender.ts';
import { computedLink, linkWithin } from '../src/replication/peer-link-fixture.ts';
import { decodeWords, encodeWords, MESSAGE } from '../src/replication/peer-messages.ts';
import { RemoteImage } from '../src/replication/remote-image.ts';
import { ShadowImage } from '../src/replication/shadow-image.ts';
import type { Effort } from '../src/wire/page-codec.ts';
import { marked } from '../test/kit/run-mark.ts';
import type { WrittenPages } from './guest-pages.ts';
import type { BenchRun, FigureInfo } from './harness.ts';

const LINKS_MBIT = [1000, 100, 10];
const WAYS: readonly { readonly name: string; readonly effort: Effort | undefined }[] = [
  ...([0, 1, 2, 3] as const).map((effort) => ({ name: `Effort${effort}`, effort })),
  { name: 'Fitting', effort: undefined },
];
/** In the first ones most pages are sent for the first time. */
const SETTLING_SHARE = 0.25;
const SLOTS = 2;

export function linkFigures(): Record<string, FigureInfo> {
  const figures: Record<string, FigureInfo> = {};
  for (const mbit of LINKS_MBIT)
    for (const { name, effort } of WAYS) {
      const way = effort === undefined ? 'the effort that fits' : `effort ${effort}`;
      figures[`link${mbit}${name}CommitMs`] = {
        meaning: `median, from the beginning of sending an epoch until it is held, at ${mbit} Mbit/s with ${way}`,
      };
      figures[`link${mbit}${name}Ratio`] = { meaning: 'bytes on the wire / bytes of pages in these epochs' };
    }
  return figures;
}

/** The samples as epochs of one VM, over links that differ in nothing but what they let through. */
export async function measureLinks(run: BenchRun, samples: readonly WrittenPages[]): Promise<void> {
  for (const mbit of LINKS_MBIT)
    for (const { name, effort } of WAYS) {
      run.progress(`epochs at ${mbit} Mbit/s: ${name}`);
      await measureLink(run, { samples, mbit, name, effort });
    }
  run.note(
    'links of so many Mbit/s are computed: CPU time of both sides, and bytes / rate, one after the other',
  );
}

interface Measured {
  readonly samples: readonly WrittenPages[];
  readonly mbit: number;
  readonly name: string;
  readonly effort: Effort | undefined;
}

async function measureLink(run: BenchRun, { samples, mbit, name, effort }: Measured): Promise<void> {
  const { nowMs, toll } = computedLink((mbit * 1e6) / 8);
  const pageCount = 1 + samples.reduce((most, { numbers }) => Math.max(most, ...numbers), 0);
  await using way = new Way(pageCount, { nowMs, toll, effort });
  const settled = Math.floor(samples.length * SETTLING_SHARE);
  let before = way.pages.sentBytes;
  for (const [index, sample] of samples.entries()) {
    run.options.signal.throwIfAborted();
    if (index === settled) before = way.pages.sentBytes;
    const commitMs = await way.send(sample);
    if (index >= settled) run.sample(`link${mbit}${name}CommitMs`, commitMs);
  }
  const { dirtyBytes, wireBytes } = way.pages.sentBytes;
  run.figure(`link${mbit}${name}CommitMs`, run.p50(`link${mbit}${name}CommitMs`));
  run.figure(`link${mbit}${name}Ratio`, (wireBytes - before.wireBytes) / (dirtyBytes - before.dirtyBytes));
}

/** From the cut of a VM to the memory of its shadow, with nothing left out but the hosts. */
class Way implements AsyncDisposable {
  readonly pages: PageSender;
  readonly #image: ShadowImage;
  readonly #store: RemoteImage;
  readonly #vm: GuestMemory;
  readonly #written: Mapping;
  readonly #nowMs: () => number;
  readonly #owned = new AsyncDisposableStack();
  #epoch = 0;

  constructor(
    pageCount: number,
    { nowMs, toll, effort }: ReturnType<typeof computedLink> & { effort: Effort | undefined },
  ) {
    const directory = mkdtempSync(`/dev/shm/${marked('links')}-`);
    this.#owned.defer(() => rmSync(directory, { recursive: true }));
    const memoryBytes = pageCount * PAGE_BYTES;
    const memoryOf = (role: string) =>
      this.#owned.use(GuestMemory.create(join(directory, role), memoryBytes));
    const failpoints = new Failpoints();
    const slots = { memoryBytes, slotCount: SLOTS };
    this.#nowMs = nowMs;
    this.#vm = memoryOf('vm');
    this.#written = this.#owned.use(Mapping.anonymous(memoryBytes));
    const memory = memoryOf('shadow');
    this.#image = this.#owned.use(ShadowImage.create({ memory, directory, slotCount: SLOTS, failpoints }));
    const { near, far } = linkWithin(undefined, toll);
    this.pages = this.#owned.use(new PageSender(near, { nowMs, fixedEffort: effort }));
    const store = RemoteImage.create({
      ...{ link: near, pages: this.pages, directory: join(directory, 'out'), ...slots },
    });
    this.#store = store;
    const receiver = this.#owned.use(
      new EpochReceiver({
        ...{ image: this.#image, failpoints, onCopied: () => {}, onAnswer: () => {} },
        onHeld: (epoch) => void far.send(MESSAGE.words, [encodeWords({ kind: 'held', epoch })]),
      }),
    );
    const receiving = (async () => {
      for await (const message of far.messages()) await receiver.take(message);
    })();
    const hearing = (async () => {
      for await (const { body } of near.messages()) {
        const words = decodeWords(body);
        if (words.kind === 'held') store.noteHeld(epochId(words.epoch));
      }
    })();
    this.#owned.defer(async () => {
      near.close();
      await store[Symbol.asyncDispose]();
      await Promise.all([receiving, hearing]);
    });
  }

  /** Returns how long it took until the epoch was held. */
  async send({ pages, numbers }: WrittenPages): Promise<number> {
    this.#epoch += 1;
    const epoch = epochId(this.#epoch);
    const runs = mergeRuns(numbers.map((firstPage) => ({ firstPage, pageCount: 1 })));
    this.#written.bytes.set(pages);
    this.#vm.writeRuns(runs, this.#written);
    const slot = this.#store.take();
    assert(slot !== undefined, 'there is room');
    slot.begin(epoch);
    slot.capture(this.#vm, runs);
    slot.finish({ deviceState: Buffer.from('none'), outputs: [] });
    const startMs = this.#nowMs();
    this.#store.offer(slot, epoch);
    await this.#store.acknowledge(slot, epoch);
    const heldMs = this.#nowMs();
    await this.#image.settle();
    return heldMs - startMs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}
