import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { ApiMetrics } from '../../src/api/api-metrics.ts';
import type { VmMetrics } from '../../src/control/vm-metrics.ts';
import { HostMetrics } from '../../src/host/host-metrics.ts';
import { parseExposition } from '../kit/exposition.ts';
import { REPOSITORY } from '../kit/static-checks.ts';

const document = (name: string) => readFileSync(join(REPOSITORY, 'docs/observability', name), 'utf8');
/** What Prometheus adds to every series, and to histograms. */
const ADDED_LABELS = ['instance', 'job', 'le'];

/** Type and labels of every family that a host can expose. */
type Families = ReadonlyMap<string, { readonly type: string; readonly labels: readonly string[] }>;

const measured = {
  recent: { count: 1, p50: 1, p99: 1, max: 1 },
  histogram: { bounds: [1], counts: [1, 0], sum: 1 },
};
/** A VM of which everything is known. */
const metrics: VmMetrics = {
  phase: 'protected',
  upMs: 1,
  memoryBytes: 1,
  epochs: {
    ...{ committed: 1, open: 2, commits: 1, pauseMs: measured, commitMs: measured, dirtyPages: measured },
    ...{ pauseShare: 0.1, pauseShareMax: 0.3 },
  },
  shadowEnabled: true,
  shadow: { copiedShare: 1, lagMs: 1, reconnects: 1, savedBytes: 1 },
  clock: { errorMs: 1, answeredAgoMs: 1, corrections: 1 },
  disks: { heldBytes: 1 },
  links: {
    ...{ heldItems: 1, heldBytes: 1, loggedItems: 1, loggedBytes: 1, releasedItems: 1 },
    ...{ replayedItems: 1, droppedItems: 1, refusedItems: 1 },
  },
  ...{ promotions: 1, restarts: 1, promoteMs: measured, outageMs: measured },
  ...{ detectMs: measured, fenceMs: measured, replyMs: measured },
  lease: { awayMs: 0, endsInMs: 1 },
  snapshots: { taken: 1, failed: 1, skipped: 1, ageMs: 1 },
  paths: [{ address: '10.0.0.2', isHeard: true, rttMs: 1, jitterMs: 1, received: 1, lost: 1 }],
};

async function exposedFamilies(): Promise<Families> {
  const host = new HostMetrics({ version: '1.2.3' });
  host.noteAction('start', 'done');
  const api = new ApiMetrics({ streams: () => 1 });
  api.note({ operation: 'getVm', status: 200, elapsedMs: 1 });
  const vms = [{ name: 'a', state: 'protected', desired: 'running' }] as const;
  const figures = new Map([['a', metrics]]);
  const text = (await host.exposition({ vms, figures, isDegraded: false })) + (await api.exposition());
  return new Map(
    [...parseExposition(text)].map(([name, { type, samples }]) => {
      const labels = new Set(samples.flatMap((sample) => [...sample.labels.keys()]));
      labels.delete('le');
      return [name, { type, labels: [...labels].sort() }];
    }),
  );
}

/** Rows of the tables of the page: name, type, labels, meaning. */
function documented(markdown: string) {
  return [...markdown.matchAll(/^\| `([a-z_]+)` \| (\w+) \| ([a-z, ]*)\| (.+) \|$/gm)].map(
    ([, name = '', type = '', labels = '', meaning = '']) => ({
      name,
      type,
      labels: labels
        .split(',')
        .map((label) => label.trim())
        .filter((label) => label !== '')
        .sort(),
      meaning,
    }),
  );
}

/** What is wrong with an expression as far as metrics and labels go. */
function faultsOf(expression: string, families: Families): string[] {
  const known = new Set([...families.values()].flatMap(({ labels }) => labels).concat(ADDED_LABELS));
  const grouped = [...expression.matchAll(/\b(?:by|on|without|ignoring) \(([^)]*)\)/g)]
    .flatMap(([, labels = '']) => labels.split(','))
    .map((label) => label.trim())
    .filter((label) => !known.has(label));
  const used = [...expression.matchAll(/\b((?:understudy|process|nodejs)_[a-z0-9_]+)(?:\{([^}]*)\})?/g)];
  if (used.length === 0) return [`names no metric: ${expression}`];
  return [
    ...grouped.map((label) => `no label ${label}`),
    ...used.flatMap(([, name = '', selectors = '']) => {
      const base = name.replace(/_(?:bucket|sum|count)$/, '');
      const family =
        families.get(name) ?? (families.get(base)?.type === 'histogram' ? families.get(base) : undefined);
      if (family === undefined) return [`no metric ${name}`];
      if (family.type === 'histogram' && base === name) return [`${name} is a histogram: take its parts`];
      return [...selectors.matchAll(/([a-z]+)\s*[=!]/g)]
        .map(([, label = '']) => label)
        .filter((label) => ![...family.labels, ...ADDED_LABELS].includes(label))
        .map((label) => `${name} has no label ${label}`);
    }),
  ];
}

interface Panel {
  readonly id: number;
  readonly title: string;
  readonly type: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly { readonly expr: string }[];
}
interface Dashboard {
  readonly panels: readonly Panel[];
  readonly templating: { readonly list: readonly { readonly type: string; readonly definition?: string }[] };
  readonly annotations: { readonly list: readonly { readonly expr: string }[] };
}
interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly labels: { readonly severity: string };
  readonly annotations: { readonly summary: string; readonly description: string };
}

const rulesIn = (text: string): Rule[] =>
  (parse(text) as { groups: { rules: Rule[] }[] }).groups.flatMap(({ rules }) => rules);
const dashboard = () => JSON.parse(document('grafana-dashboard.json')) as Dashboard;

let families: Families;
beforeAll(async () => {
  families = await exposedFamilies();
});

describe('the page on metrics', () => {
  const facts = (markdown: string) =>
    documented(markdown)
      .map(({ name, type, labels }) => ({ name, type, labels }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  const exposed = () =>
    [...families]
      .map(([name, { type, labels }]) => ({ name, type, labels }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));

  it('has every family that a host exposes, with its type and its labels, and no other', () => {
    expect(facts(document('metrics.md'))).toEqual(exposed());
    expect(families.size).toBeGreaterThan(40);
  });

  it.each<[string, (page: string) => string]>([
    ['a row missing', (page) => page.replace(/^\| `understudy_vm_up`.*\n/m, '')],
    ['a metric that is none', (page) => page.replace('`understudy_vm_up`', '`understudy_vm_down`')],
    ['another type', (page) => page.replace('`understudy_vm_up` | gauge', '`understudy_vm_up` | counter')],
    ['a label missing', (page) => page.replace('| vm, phase |', '| vm |')],
  ])('would be found wrong with %s', (_, spoil) => {
    expect(facts(spoil(document('metrics.md')))).not.toEqual(exposed());
  });
});

describe('the alert rules', () => {
  it('speak of metrics and labels that there are, and say what to do', () => {
    const rules = rulesIn(document('alerts.yaml'));
    expect(rules.length).toBeGreaterThan(8);
    expect(new Set(rules.map(({ alert }) => alert)).size).toBe(rules.length);
    for (const { alert, expr, labels, annotations } of rules) {
      expect([alert, faultsOf(expr, families)]).toEqual([alert, []]);
      expect(['page', 'ticket', 'info']).toContain(labels.severity);
      expect(annotations.summary.length).toBeGreaterThan(10);
      expect(annotations.description.length).toBeGreaterThan(20);
    }
  });
});

describe('the dashboard', () => {
  it('shows metrics and labels that there are', () => {
    const { panels, templating, annotations } = dashboard();
    const expressions = [
      ...panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
      ...annotations.list.map(({ expr }) => expr),
      ...templating.list.flatMap(({ definition }) => definition ?? []),
    ];
    expect(expressions.length).toBeGreaterThan(20);
    for (const expression of expressions)
      expect([expression, faultsOf(expression, families)]).toEqual([expression, []]);
  });

  it('has panels with ids of their own that do not cover each other', () => {
    const { panels } = dashboard();
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
    for (const { title, type, targets = [] } of panels)
      expect([title, type === 'row' || targets.length > 0]).toEqual([title, true]);
    for (const [index, { gridPos: a, title }] of panels.entries()) {
      expect(a.x + a.w).toBeLessThanOrEqual(24);
      const covering = panels
        .slice(index + 1)
        .filter(({ gridPos: b }) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h);
      expect([title, covering.map((other) => other.title)]).toEqual([title, []]);
    }
  });
});

describe('an expression', () => {
  it.each([
    ['up == 0', 'names no metric'],
    ['understudy_vm_down == 0', 'no metric understudy_vm_down'],
    ['understudy_vm_up{name="a"} == 0', 'understudy_vm_up has no label name'],
    ['rate(understudy_vm_pause_seconds[5m])', 'is a histogram'],
    ['rate(understudy_vm_up_sum[5m])', 'no metric understudy_vm_up_sum'],
    ['sum by (guest) (understudy_vm_up)', 'no label guest'],
  ])('%s is found wrong', (expression, fault) => {
    expect(faultsOf(expression, families)).toEqual([expect.stringContaining(fault)]);
  });
});
