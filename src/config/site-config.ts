import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { messageOf } from '../base/errors.ts';
import { ConfigError } from './config-error.ts';
import { parseYamlText } from './yaml-text.ts';

/** The name of a host, as in its certificate. */
export const hostName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$/, 'no name of a host (1 to 63 of A-Z a-z 0-9 . -)');

const address = z
  .string()
  .regex(/^(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$/, 'expected address and port, e.g. 10.0.0.1:7946')
  .refine((text) => {
    const port = Number(text.slice(text.lastIndexOf(':') + 1));
    return port >= 1 && port <= 65_535;
  }, 'expected a port from 1 to 65535');

const PATHS_MAX = 8;

/** One address, or one for each path, the preferred one first. */
const addresses = z.union([address.transform((one) => [one]), z.array(address).min(1).max(PATHS_MAX)], {
  error: ({ input }) => {
    const wanted = Array.isArray(input) ? input.find((one) => !address.safeParse(one).success) : input;
    return address.safeParse(wanted).error?.issues[0]?.message ?? `expected 1 to ${PATHS_MAX} addresses`;
  },
});

const filePath = z
  .string()
  .min(1, 'is empty')
  .refine((path) => !path.includes('\0'), 'has a NUL byte');

const etcd = z.strictObject({
  endpoints: z
    .array(z.url({ protocol: /^https$/, error: 'expected a URL with https, e.g. https://10.0.0.1:2379' }))
    .min(1),
  ca: filePath.optional(),
  certificate: filePath.optional(),
  key: filePath.optional(),
});

/** Left out means: as `SITE_CONFIG_EXAMPLE` says. */
const siteConfigSchema = z
  .strictObject({
    host: hostName,
    listen: addresses,
    certificate: filePath,
    key: filePath,
    ca: filePath,
    hosts: z.record(hostName, addresses),
    lease: z.strictObject({ etcd, holdSeconds: z.int().min(3).max(60).default(10) }),
    labels: z
      .record(z.string().regex(/^[a-z][a-z0-9-]{0,39}$/, 'no name of a label'), z.string().max(64))
      .optional(),
    peerTimeoutMs: z.int().min(500).max(60_000).default(1000),
    peerTimeoutMinMs: z.int().min(100).max(60_000).default(300),
  })
  .superRefine(({ host, hosts, listen, peerTimeoutMs, peerTimeoutMinMs }, context) => {
    if (peerTimeoutMinMs > peerTimeoutMs)
      context.addIssue({
        code: 'custom',
        path: ['peerTimeoutMinMs'],
        message: `is longer than peerTimeoutMs (${peerTimeoutMs})`,
      });
    const ports = new Set(listen.map((one) => one.slice(one.lastIndexOf(':'))));
    if (ports.size > 1)
      context.addIssue({
        code: 'custom',
        path: ['listen'],
        message: 'has several ports: one is used at all addresses',
      });
    if (host in hosts)
      context.addIssue({ code: 'custom', path: ['hosts', host], message: 'is this host: name the others' });
  });

type Said = z.output<typeof siteConfigSchema>;

/** What a host knows of the others that take shadows of its VMs. File paths are absolute. */
export type SiteConfig = Omit<Said, 'lease'> & {
  readonly lease: {
    /** For so long nobody else starts a VM whose holder is alone and does not renew its right. */
    readonly holdSeconds: number;
    readonly etcd: {
      readonly endpoints: readonly string[];
      readonly ca: string;
      readonly certificate: string;
      readonly key: string;
    };
  };
};

export const SITE_CONFIG_EXAMPLE = `\
host: a                             # this host, as its certificate calls it
listen: 10.0.0.1:7946               # where the other hosts reach it, with TLS from both sides; several: [10.0.0.1:7946, ...]
certificate: pki/a.crt              # \`understudy pki host\` makes it; relative paths begin at this file
key: pki/a.key
ca: pki/ca.crt                      # who signed the certificates of all hosts
hosts:                              # the others, by name
  b: 10.0.0.2:7946                  # or, with several paths: [10.0.0.2:7946, 10.1.0.2:7946]
lease:                              # where it is on record who acts as which VM
  etcd:
    endpoints: [https://10.0.0.1:2379, https://10.0.0.2:2379, https://10.0.0.3:2379]
    ca: pki/ca.crt                  # these three by default as above
    certificate: pki/a.crt
    key: pki/a.key
  holdSeconds: 10                   # a VM without a shadow stands still when etcd is away for longer
labels: {rack: r1}                  # what may fail together with this host; by default none
peerTimeoutMs: 1000                 # a host that was not heard for so long is taken for lost in any case
peerTimeoutMinMs: 300               # and for so long at the earliest; between the two it depends on how steady it was
`;

const DEFAULT_PATH = '/etc/understudy/site.yaml';

/** Where the configuration lies: `given`, else `$UNDERSTUDY_SITE`, else /etc/understudy/site.yaml. */
export function siteConfigPath(
  given?: string,
  env: Readonly<Record<string, string | undefined>> = process.env,
): string {
  return resolve(given || env.UNDERSTUDY_SITE || DEFAULT_PATH);
}

/** @throws {ConfigError} CONFIG_NOT_FOUND, CONFIG_INVALID */
export function loadSiteConfig(path: string): SiteConfig {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new ConfigError('CONFIG_NOT_FOUND', `cannot read the site ${path}: ${messageOf(cause)}`, {
      hint: 'A VM with shadow.hosts needs to know the other hosts: `understudy site --help` shows such a file, docs/two-hosts.md the rest.',
      facts: { path },
      cause,
    });
  }
  return parseSiteConfig(text, { source: path });
}

/** @throws {ConfigError} CONFIG_INVALID, with all problems and their lines */
export function parseSiteConfig(text: string, { source }: { source: string }): SiteConfig {
  const { value } = parseYamlText(text, siteConfigSchema, { source, whole: 'site' });
  const absolute = (path: string) => resolve(dirname(source), path);
  const { etcd: given, holdSeconds } = value.lease;
  return {
    ...value,
    certificate: absolute(value.certificate),
    key: absolute(value.key),
    ca: absolute(value.ca),
    lease: {
      holdSeconds,
      etcd: {
        ...given,
        ca: absolute(given.ca ?? value.ca),
        certificate: absolute(given.certificate ?? value.certificate),
        key: absolute(given.key ?? value.key),
      },
    },
  };
}
