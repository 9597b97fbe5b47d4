import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { adoption } from './adoption.ts';
import { anomaly } from './anomaly.ts';
import { api } from './api.ts';
import { checkpoint } from './checkpoint.ts';
import { disk } from './disk.ts';
import { failover } from './failover.ts';
import { failover2 } from './failover2.ts';
import { forecast } from './forecast.ts';
import { nbd } from './nbd.ts';
import { overhead } from './overhead.ts';
import { policy } from './policy.ts';
import { replication } from './replication.ts';
import { restore } from './restore.ts';
import { sampling } from './sampling.ts';
import { series } from './series.ts';
import { warming } from './warming.ts';
import { wire } from './wire.ts';

const DOCUMENT = readFileSync(new URL('../docs/benchmarks.md', import.meta.url), 'utf8');

function figuresOfSection(name: string): string[] {
  const section = DOCUMENT.split(/^## /m).find((text) => text.startsWith(`${name}\n`)) ?? '';
  const [figures = ''] = section.split('| samples |');
  return [...figures.matchAll(/^\| `(\w+)` \|/gm)].map(([, figure]) => figure ?? '');
}

describe('docs/benchmarks.md', () => {
  it.each([
    checkpoint,
    failover,
    overhead,
    api,
    adoption,
    wire,
    restore,
    nbd,
    disk,
    warming,
    replication,
    failover2,
    anomaly,
    forecast,
    policy,
    series,
    sampling,
  ])('has the figures of $name, all of them', ({ name, figures }) => {
    expect(figuresOfSection(name)).toEqual(Object.keys(figures));
  });
});
