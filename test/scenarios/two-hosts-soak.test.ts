import { openSync, readSync, writeSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { seededRandom } from '../../src/base/seeded-random.ts';
import { PAGE_BYTES } from '../../src/base/units.ts';
import { comparablePlant, compareMemory } from '../kit/memory-comparison.ts';
import { soakSetting } from '../kit/soak.ts';
import { describeRound, planRounds, type Roles, strike } from '../kit/two-host-faults.ts';
import { TwoHostOracle, type Usage } from '../kit/two-host-oracle.ts';
import { TwoHosts } from '../kit/two-hosts.ts';
import { driftOf, summaryOf } from '../kit/usage-drift.ts';

const { seed, faults, failbacks } = soakSetting;
const CLIENTS = 3;
const GAP_MS = 10;
const MEMORY_BYTES = 128 * 2 ** 20;

let hosts: TwoHosts;
let oracle: TwoHostOracle;
const diary: string[] = [`UNDERSTUDY_SOAK_SEED=${seed}`];
const usages: Usage[] = [];

function note(line: string): void {
  diary.push(line);
  if (soakSetting.isLong) process.stderr.write(`soak: ${line}\n`);
}

/** Lets something happen to a VM that is protected and under load, waits until it is so again, and judges all of it. */
async function suffer(act: (roles: Roles) => Promise<void>): Promise<void> {
  const before = await oracle.settled();
  const startMs = clock.nowMs();
  await hosts.load.begin({ gapMs: GAP_MS });
  await act(before);
  const after = await oracle.settled();
  const tookMs = Math.round(clock.nowMs() - startMs);
  const report = await hosts.load.end();
  const usage = oracle.usage(after);
  usages.push(usage);
  note(`  ${before.here} -> ${after.here} in ${tookMs} ms, ${report.ackedWrites} writes`);
  note(`  acting: ${summaryOf(usage.acting)}; shadowing: ${summaryOf(usage.shadowing)}`);
  const said = diary.join('\n');
  expect(await oracle.judge(after, report), said).toEqual([]);
  expect(await oracle.inventedKeys(report), said).toBe(0);
  expect((await compareMemory(hosts, after)).differing, said).toEqual([]);
}

function assertNoDrift(): void {
  for (const role of ['acting', 'shadowing'] as const) {
    const drift = driftOf(
      usages.map((usage) => usage[role]),
      { memoryBytes: MEMORY_BYTES },
    );
    expect(drift, diary.join('\n')).toEqual([]);
  }
}

describe('a VM with its shadow on another host, over many faults', () => {
  beforeAll(async () => {
    hosts = await TwoHosts.withVm({
      clients: CLIENTS,
      plants: ({ memoryFolder }) => {
        const plant = comparablePlant(memoryFolder);
        return { a: plant, b: plant };
      },
    });
    oracle = new TwoHostOracle(hosts);
    note(`${failbacks} rounds, ${faults} faults`);
  });

  afterAll(async () => {
    await oracle?.[Symbol.asyncDispose]();
    await hosts?.[Symbol.asyncDispose]();
  });

  it('goes there and comes back, protected each time, without drift', async () => {
    for (let round = 0; round < 2 * failbacks; round += 1) {
      note(`failover ${round}`);
      const { moves } = oracle;
      await suffer(async ({ here }) => hosts.killHost(here));
      expect(oracle.moves).toBe(moves + 1);
    }
    assertNoDrift();
  });

  it('loses nothing, acts in one place only, and leaves nothing behind, whatever goes wrong', async () => {
    const random = seededRandom(seed);
    for (const [number, round] of planRounds(faults, random).entries()) {
      note(`fault ${number}: ${describeRound(round)}`);
      await suffer(async (roles) => {
        await clock.sleep(random() * 300);
        await strike(round, { ...roles, hosts, random });
      });
    }
    assertNoDrift();
    note(`it has moved ${oracle.moves} times`);
  });

  it('would be seen to have lost or invented a write, or a bit of its memory (control)', async () => {
    const roles = await oracle.settled();
    await hosts.load.begin();
    await clock.sleep(100);
    const report = await hosts.load.end();
    const { differing } = await compareMemory(hosts, roles, (shadowFile) => {
      const fd = openSync(shadowFile, 'r+');
      const byte = Buffer.alloc(1);
      readSync(fd, byte, 0, 1, 7 * PAGE_BYTES);
      writeSync(fd, Uint8Array.of(byte.readUInt8() ^ 1), 0, 1, 7 * PAGE_BYTES);
    });
    expect(differing).toEqual([7]);
    await hosts.load.command('SET', 'invented', '1');
    expect(await oracle.inventedKeys(report)).toBe(1);
    await hosts.load.command('FLUSHALL');
    expect(await oracle.judge(roles, report)).toEqual([
      expect.stringMatching(/acknowledged writes are lost/),
    ]);
  });
});
