import { afterEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { TwoHosts } from '../kit/two-hosts.ts';

let hosts: TwoHosts | undefined;

afterEach(async () => {
  await hosts?.[Symbol.asyncDispose]();
  hosts = undefined;
});

/** All that was acknowledged is there, by value, and no connection was lost. */
async function expectNothingLost(hosts: TwoHosts): Promise<void> {
  const { connections } = await hosts.load.end();
  expect(connections.survived).toBe(connections.total);
  expect(await hosts.load.verify()).toMatchObject({ lostWrites: 0 });
  expect(await hosts.isSameGuest()).toBe(true);
}

describe('a VM with its shadow on another host', () => {
  it('goes on there when its own is lost, is protected in the other direction, and comes back the same way', async () => {
    hosts = await TwoHosts.withVm();
    await hosts.load.begin();
    for (const [from, to] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const) {
      await clock.sleep(500);
      const before = await hosts.record();
      hosts.killHost(from);
      const promoted = await hosts.until(to, 'promoted');
      expect(promoted.facts).toMatchObject({ from, reason: 'peer-lost' });
      expect(await hosts.record()).toMatchObject({ holder: to, token: (before?.token ?? 0) + 1 });
      await hosts.until(to, 'protected', { after: promoted.seq });
    }
    await expectNothingLost(hosts);
  });
});
