import { execFileSync } from 'node:child_process';
import { closeSync, readlinkSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { LinuxError } from './linux-error.ts';
import { RouteSocket } from './route-socket.ts';
import { openTap } from './tap.ts';

const netns = `${marked('route-test')}-${process.pid}`;
const device = 'us-route0';
const bridge = 'us-route-br';
const ip = (...words: string[]) =>
  execFileSync('ip', ['-n', netns, '-json', ...words], { encoding: 'utf8', stdio: 'pipe' });
const shown = (what: 'link' | 'address') => JSON.parse(ip(what, 'show', 'dev', device))[0];

beforeAll(() => {
  execFileSync('ip', ['netns', 'add', netns]);
  ip('link', 'add', bridge, 'type', 'bridge');
});
afterAll(() => void execFileSync('ip', ['netns', 'delete', netns]));
let fd = -1;
beforeEach(() => {
  fd = openTap({ device, netns });
});
afterEach(() => closeSync(fd));

describe('devices of another network namespace', () => {
  test('get a hardware address, join a bridge and go up, as `ip` sees it', () => {
    using routes = new RouteSocket({ netns });
    const index = routes.indexOf(device);
    expect(index).toBe(shown('link').ifindex);
    routes.change(index, { hardwareAddress: 'fe:54:00:12:34:56', master: routes.indexOf(bridge) });
    expect(shown('link')).toMatchObject({ address: 'fe:54:00:12:34:56', master: bridge });
    expect(shown('link').flags).not.toContain('UP');
    routes.change(index, { up: true });
    expect(shown('link')).toMatchObject({ address: 'fe:54:00:12:34:56', master: bridge });
    expect(shown('link').flags).toContain('UP');
  });

  test('that have joined already stay where they are', () => {
    ip('link', 'set', device, 'master', bridge);
    using routes = new RouteSocket({ netns });
    routes.change(routes.indexOf(device), { master: routes.indexOf(bridge) });
    expect(shown('link').master).toBe(bridge);
  });

  test.each([
    ['10.99.0.1/24', { family: 'inet', local: '10.99.0.1', prefixlen: 24 }],
    ['fd00:99::1/64', { family: 'inet6', local: 'fd00:99::1', prefixlen: 64 }],
  ])('get the address %s', (address, expected) => {
    using routes = new RouteSocket({ netns });
    routes.addAddress(routes.indexOf(device), address);
    expect(shown('address').addr_info).toContainEqual(expect.objectContaining(expected));
  });

  test('and the thread stays in its own', () => {
    const home = readlinkSync('/proc/thread-self/ns/net');
    using routes = new RouteSocket({ netns });
    routes.indexOf(device);
    expect(readlinkSync('/proc/thread-self/ns/net')).toBe(home);
    using ours = new RouteSocket();
    expect(() => ours.indexOf(device)).toThrow(expect.objectContaining({ errnoName: 'ENODEV' }));
  });
});

describe('what the kernel refuses', () => {
  test.each<[string, string, (routes: RouteSocket, index: number) => void]>([
    ['a device that is not there', 'ENODEV', (routes) => void routes.indexOf('us-nowhere')],
    [
      'a bridge that is none',
      'EOPNOTSUPP',
      (routes, index) => routes.change(index, { master: routes.indexOf('lo') }),
    ],
    [
      'an address of a group',
      'EADDRNOTAVAIL',
      (routes, index) => routes.change(index, { hardwareAddress: 'ff:ff:ff:ff:ff:ff' }),
    ],
    ['an address that is none', 'EINVAL', (routes, index) => routes.addAddress(index, '10.99.0.256/24')],
    ['a prefix that is none', 'EINVAL', (routes, index) => routes.addAddress(index, '10.99.0.1/33')],
  ])('is told by its name: %s', (_, errnoName, act) => {
    using routes = new RouteSocket({ netns });
    const index = routes.indexOf(device);
    const before = shown('link');
    expect(() => act(routes, index)).toThrow(LinuxError);
    expect(() => act(routes, index)).toThrow(expect.objectContaining({ errnoName }));
    expect(shown('link')).toEqual(before);
  });
});
