import { chmodSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { answerOrder, outcomeOf, placeOrder, takeOrder } from './keeper-order.ts';
import { keepersAreUnits, startKeeperUnit } from './keeper-unit.ts';
import { RunDirectory } from './run-directory.ts';

const VM = 'redis';
const GIVEN = {
  source: '/srv/redis.yaml',
  spec: 'name: redis',
  wishes: { shadowWanted: false, tokenAbove: 7, trace: 'call-1' },
};

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-order-'));
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

/** A systemctl that does what a test says: systemd itself is in test/integration/systemd.test.ts. */
function systemctlThat(...lines: string[]): void {
  const bin = join(folder, 'bin');
  mkdirSync(bin, { recursive: true });
  writeFileSync(join(bin, 'systemctl'), ['#!/bin/sh', `cd '${folder}/run/.orders'`, ...lines].join('\n'));
  chmodSync(join(bin, 'systemctl'), 0o755);
  vi.stubEnv('PATH', `${bin}${delimiter}${process.env.PATH}`);
}

/** Shell that answers the order that lies there, with the outcome in JSON. */
const answers = (outcome: string) =>
  `printf '{"order":"%s","outcome":%s}' "$(sed 's/.*"id":"\\([^"]*\\)".*/\\1/' ${VM}.json)" '${outcome}' >${VM}.outcome.json`;

describe('an order for a keeper', () => {
  it('is carried out once, and answered to who gave it', () => {
    const order = placeOrder(VM, GIVEN);
    expect(outcomeOf(VM, order)).toBeUndefined();
    expect(takeOrder(VM)).toEqual({ id: order.id, ...GIVEN });
    expect(() => takeOrder(VM)).toThrow(expect.objectContaining({ code: 'KEEPER_NO_ORDER' }));
    answerOrder(VM, order.id, { outcome: { ok: true, pid: 7 } });
    expect(outcomeOf(VM, order)).toEqual({ ok: true, pid: 7 });
  });

  it('is not taken for done by the answer to an earlier one', () => {
    const earlier = placeOrder(VM, GIVEN);
    const order = placeOrder(VM, GIVEN);
    answerOrder(VM, earlier.id, { outcome: { ok: true, pid: 7 } });
    expect(outcomeOf(VM, order)).toBeUndefined();
  });

  it('that is damaged is none', () => {
    placeOrder(VM, GIVEN);
    writeFileSync(join(folder, 'run/.orders', `${VM}.json`), '{"id":');
    expect(() => takeOrder(VM)).toThrow(expect.objectContaining({ code: 'KEEPER_NO_ORDER' }));
  });

  it('is not taken for a VM', () => {
    placeOrder(VM, GIVEN);
    expect(RunDirectory.list()).toEqual([]);
  });
});

describe('the start of a keeper as a unit', () => {
  const start = () => startKeeperUnit({ name: VM, ...GIVEN });
  const leftOver = () => readdirSync(join(folder, 'run/.orders'));

  it('succeeds when systemd and the keeper say so, and names the unit', async () => {
    systemctlThat('echo "$@" >../../asked', answers('{"ok":true,"pid":7}'));
    await start();
    const { readFileSync } = await import('node:fs');
    expect(readFileSync(join(folder, 'asked'), 'utf8')).toBe(
      '--no-ask-password start understudy-keeper@redis.service\n',
    );
    expect(leftOver()).toEqual([]);
  });

  it('fails with what the keeper says, and not with what systemd makes of it', async () => {
    systemctlThat(
      answers('{"ok":false,"error":{"code":"MEMORY_NO_ROOM","message":"no room","hint":"Less.","needed":5}}'),
      'echo "Job failed" >&2; exit 1',
    );
    await expect(start()).rejects.toMatchObject({
      code: 'MEMORY_NO_ROOM',
      message: 'no room',
      hint: 'Less.',
      facts: { needed: 5 },
    });
    expect(leftOver()).toEqual([]);
  });

  it.each<[string, string[], string]>([
    ['the keeper had no time to say why', ['echo "Job timed out" >&2; exit 1'], 'Job timed out'],
    ['a keeper was there already', ['exit 0'], 'is active already'],
    [
      'the keeper ended right after its start',
      [answers('{"ok":true,"pid":7}'), 'echo gone >&2; exit 1'],
      'gone',
    ],
  ])('fails with a code of its own when %s', async (_, lines, why) => {
    systemctlThat(...lines);
    await expect(start()).rejects.toMatchObject({
      code: 'KEEPER_START_FAILED',
      message: expect.stringContaining(why),
      hint: expect.stringContaining('journalctl -u understudy-keeper@redis.service'),
    });
    expect(leftOver()).toEqual([]);
  });

  it('fails where there is no systemctl', async () => {
    vi.stubEnv('PATH', join(folder, 'nothing'));
    await expect(start()).rejects.toMatchObject({ code: 'KEEPER_START_FAILED' });
  });
});

describe('keepers are units', () => {
  const asUnit = { systemdRuns: true, cgroup: '0::/understudy.slice/understudy-host.service\n' };
  const byHand = { systemdRuns: true, cgroup: '0::/user.slice/user-0.slice/session-1.scope\n' };

  it.each([
    ['auto', asUnit, true],
    ['auto', byHand, false],
    ['auto', { ...asUnit, systemdRuns: false }, false],
    ['auto', { systemdRuns: true, cgroup: '0::/understudy-host.service.old\n' }, false],
    ['direct', asUnit, false],
    ['systemd', byHand, true],
  ] as const)('with %s in %j: %j', (setting, surroundings, expected) => {
    expect(keepersAreUnits(setting, surroundings)).toBe(expected);
  });
});
