import { describe, expect, it } from 'vitest';
import { loadSiteConfig, parseSiteConfig, SITE_CONFIG_EXAMPLE, siteConfigPath } from './site-config.ts';

const source = '/etc/understudy/site.yaml';

describe('the configuration of a site', () => {
  it('is what its example shows, with paths that begin at its file', () => {
    expect(parseSiteConfig(SITE_CONFIG_EXAMPLE, { source })).toEqual({
      host: 'a',
      listen: ['10.0.0.1:7946'],
      certificate: '/etc/understudy/pki/a.crt',
      key: '/etc/understudy/pki/a.key',
      ca: '/etc/understudy/pki/ca.crt',
      hosts: { b: ['10.0.0.2:7946'] },
      lease: {
        holdSeconds: 10,
        etcd: {
          endpoints: ['https://10.0.0.1:2379', 'https://10.0.0.2:2379', 'https://10.0.0.3:2379'],
          ca: '/etc/understudy/pki/ca.crt',
          certificate: '/etc/understudy/pki/a.crt',
          key: '/etc/understudy/pki/a.key',
        },
      },
      labels: { rack: 'r1' },
      peerTimeoutMs: 1000,
      peerTimeoutMinMs: 300,
    });
  });

  it('has several addresses for a host that is reached on several paths', () => {
    const text = SITE_CONFIG_EXAMPLE.replace('b: 10.0.0.2:7946', 'b: [10.0.0.2:7946, 10.1.0.2:7946]');
    expect(parseSiteConfig(text, { source }).hosts).toEqual({ b: ['10.0.0.2:7946', '10.1.0.2:7946'] });
  });

  it.each([
    ['b: 10.0.0.2:7946', 'a: 10.0.0.2:7946', /site\.yaml:7: hosts\.a: is this host/],
    ['listen: 10.0.0.1:7946', 'listen: 10.0.0.1', /site\.yaml:2: listen: expected address and port/],
    ['listen: 10.0.0.1:7946', 'listen: [10.0.0.1:7946, 10.1.0.1:7947]', /listen: has several ports/],
    ['b: 10.0.0.2:7946', 'b: [10.0.0.2:7946, nowhere]', /hosts\.b\[1\]: expected address and port/],
    [
      'peerTimeoutMinMs: 300',
      'peerTimeoutMinMs: 2000',
      /peerTimeoutMinMs: is longer than peerTimeoutMs \(1000\)/,
    ],
    ['b: 10.0.0.2:7946', 'b: []', /hosts\.b: expected 1 or more/],
    ['listen: 10.0.0.1:7946', 'listen: 10.0.0.1:70000', /expected a port from 1 to 65535/],
    ['https://10.0.0.1:2379', 'http://10.0.0.1:2379', /endpoints\[0\]: expected a URL with https/],
    ['peerTimeoutMs: 1000', 'peerTimeoutMs: 1', /peerTimeoutMs/],
    ['peerTimeoutMs: 1000', 'timeout: 1000', /timeout/],
  ])('is refused, with the line, where it says %s as %s', (right, wrong, problem) => {
    const text = SITE_CONFIG_EXAMPLE.replace(right, wrong);
    expect(() => parseSiteConfig(text, { source })).toThrow(problem);
  });

  it('lies where somebody says, or where it always does', () => {
    expect(siteConfigPath('/a.yaml', { UNDERSTUDY_SITE: '/b.yaml' })).toBe('/a.yaml');
    expect(siteConfigPath(undefined, { UNDERSTUDY_SITE: '/b.yaml' })).toBe('/b.yaml');
    expect(siteConfigPath(undefined, {})).toBe(source);
    expect(() => loadSiteConfig('/nowhere/site.yaml')).toThrow(
      expect.objectContaining({ code: 'CONFIG_NOT_FOUND' }),
    );
  });
});
