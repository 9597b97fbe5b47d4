import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { type EpochId, FIRST_EPOCH } from '../epoch/epoch-id.ts';
import { CompareLog } from '../memory/compare-log.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { EpochPipeline, type PipelineOptions } from './epoch-pipeline.ts';
import { EpochStats } from './epoch-stats.ts';
import { ShadowImage } from './shadow-image.ts';

const MEMORY_BYTES = 16 * PAGE_BYTES;
const POLICY = {
  ...{ maxIntervalMs: 60_000, dirtyPagesMax: 16, epochsInFlightMax: 2 },
  ...{ pauseShare: 0.5, pauseBurstMs: 1000 },
};

let directory: string;
let owned: AsyncDisposableStack;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('pipeline')}-`);
  owned = new AsyncDisposableStack();
  owned.defer(() => rmSync(directory, { recursive: true }));
  onTestFinished(() => owned.disposeAsync());
});

/** Epochs of a VM that does what it is told at once, and what became of them. */
function pipelineOf(failpoints: Failpoints, more: Partial<PipelineOptions> = {}) {
  const memory = owned.use(GuestMemory.create(join(directory, 'primary.ram'), MEMORY_BYTES));
  const copy = owned.use(GuestMemory.create(join(directory, 'shadow.ram'), MEMORY_BYTES));
  const image = owned.use(ShadowImage.create({ memory: copy, directory, slotCount: 4, failpoints }));
  const deviceStatePath = join(directory, 'state');
  const story: string[] = [];
  const note = (what: string) => (epoch: EpochId) => story.push(`${what} ${epoch}`);
  const pipeline = new EpochPipeline({
    source: {
      ...{ memory, deviceStatePath, dirtyLog: owned.use(new CompareLog({ memory })), links: [] },
      participants: [{ seal: note('sealed'), commit: note('committed'), abort: note('aborted') }],
      disks: [],
      mayContinue: () => true,
      hasPanicked: () => false,
      machine: {
        standstillMs: 0,
        wake: async () => {},
        cont: async () => {},
        stopAndSave: (path) => {
          writeFileSync(path, 'device state');
          return { stopped: Promise.resolve(), saved: Promise.resolve() };
        },
      },
    },
    ...{ store: image, policy: POLICY, firstEpoch: FIRST_EPOCH, clock: systemClock, failpoints },
    ...{ stats: new EpochStats(), onCommit: () => {}, onPause: () => {} },
    onPrimaryLost: () => story.push('primary lost'),
    onShadowLost: () => story.push('shadow lost'),
    ...more,
  });
  owned.defer(() => pipeline.halt());
  return { pipeline, image, story };
}

describe('a pipeline that is frozen', () => {
  it.each([
    { failpoint: 'cut.before-pause', story: [] },
    { failpoint: 'cut.after-pause', story: [] },
    { failpoint: 'cut.after-stage', story: [] },
    { failpoint: 'cut.before-resume', story: ['sealed 1', 'aborted 1'] },
    { failpoint: 'commit.before-acknowledge', story: ['sealed 1', 'aborted 1'] },
    { failpoint: 'commit.after-acknowledge', story: ['sealed 1', 'committed 1'] },
  ])('at $failpoint seals and commits nothing from then on', async ({ failpoint, story: expected }) => {
    const failpoints = new Failpoints();
    const { pipeline, image, story } = pipelineOf(failpoints);
    const frozen = new Promise<void>((resolve) => {
      failpoints.arm(failpoint, () => {
        pipeline.freeze();
        resolve();
      });
    });
    pipeline.start();
    await frozen;
    await pipeline.halt();
    pipeline.demand();
    await pipeline.halt();
    expect(story).toEqual(expected);
    const isCommitted = expected.includes('committed 1');
    const settled = await image.settle().then(
      ({ epoch }) => epoch,
      () => undefined,
    );
    expect(settled).toBe(isCommitted ? 1 : undefined);
  });
});

describe('a pipeline whose shadow is lost in the middle of a cut', () => {
  it('has nothing sealed when it is halted: what that cut seals is abandoned too', async () => {
    const failpoints = new Failpoints();
    const { pipeline, story } = pipelineOf(failpoints);
    const [inSecondCut, isHalting] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    failpoints.arm('cut.after-resume', () => {
      failpoints.arm('cut.after-pause', async () => {
        inSecondCut.resolve();
        await isHalting.promise;
      });
      setImmediate(() => pipeline.demand());
    });
    failpoints.arm('commit.before-acknowledge', async () => {
      await inSecondCut.promise;
      throw new Error('the shadow is gone');
    });
    pipeline.start();
    await until(() => story.includes('shadow lost'));
    const halted = pipeline.halt();
    setImmediate(isHalting.resolve);
    await halted;
    const epochs = story.filter((what) => what !== 'shadow lost');
    expect(epochs).toEqual(['sealed 1', 'sealed 2', 'aborted 2', 'aborted 1']);
  });
});

describe('an epoch that the shadow holds', () => {
  it('is committed when all that has to hold it besides does', async () => {
    const durable = Promise.withResolvers<void>();
    const { pipeline, image, story } = pipelineOf(new Failpoints(), { beforeRelease: () => durable.promise });
    pipeline.start();
    while (image.committed === 0) await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(story).toEqual(['sealed 1']);
    durable.resolve();
    while (story.length === 1) await new Promise((resolve) => setImmediate(resolve));
    expect(story).toEqual(['sealed 1', 'committed 1']);
  });
});

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}
