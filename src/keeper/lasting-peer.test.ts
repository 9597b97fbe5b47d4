import { describe, expect, it, onTestFinished } from 'vitest';
import { UnsteadyNetwork } from '../../test/kit/unsteady-network.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { MESSAGE } from '../replication/peer-messages.ts';
import type { Resumed } from '../wire/lasting-link.ts';
import { dialLasting, ShadowDoor } from './lasting-peer.ts';
import { openPresence } from './presence.ts';
import { twoHosts } from './site-fixture.ts';

const CLAIM = { stream: 7n, token: 3n };
/** Nobody listens there. */
const REFUSING = '127.0.0.4:1';

describe('the link between the keepers of a VM and of its shadow', () => {
  it('goes on when the connection breaks while an address that never led there refuses', async () => {
    const { a, b } = await twoHosts(onTestFinished);
    const failpoints = new Failpoints();
    const resumed: Resumed[] = [];
    const ignored = () => {};
    using door = await ShadowDoor.open(a, { ...{ peer: 'b', clock, failpoints }, onResumed: ignored });
    using presence = await openPresence(['127.0.0.1']);
    await using network = await UnsteadyNetwork.to(door.port);
    const signal = AbortSignal.timeout(20_000);
    const { link: near, path } = await dialLasting(b(REFUSING, '127.0.0.1:1'), 'a', {
      ...{ clock, failpoints, signal, port: network.port, claim: () => CLAIM },
      onResumed: (how) => resumed.push(how),
    });
    const far = await door.link;
    door.know({ copy: 7, rightToken: 3, presencePort: presence.port });
    expect(path()).toBe(1);
    // And the next one as well, in its handshake.
    network.cutAfter(1);
    network.cut();
    await near.send(MESSAGE.words, [Buffer.from('still there')]);
    const { value } = await far.messages()[Symbol.asyncIterator]().next();
    expect(String(Buffer.from(value.body))).toBe('still there');
    expect(resumed).toHaveLength(1);
    near.close();
    far.close();
  });
});
