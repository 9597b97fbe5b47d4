import { beforeAll, describe, expect, test } from 'vitest';
import { CompiledWriter } from '../../src/memory/compiled-writer.ts';
import { runInDebianGuest } from '../kit/debian-guest.ts';
import {
  cgroupChecks,
  faultyLogChecks,
  type GuestReport,
  softDirtyChecks,
} from '../kit/debian-guest-checks.ts';

/** All of it in one boot, which takes most of the time. */
let reports: Map<string, string | null>;
let guestConsole: string;

beforeAll(async () => {
  using compiled = await CompiledWriter.make();
  const programs = [compiled.libraryPath, compiled.writerPath];
  const run = await runInDebianGuest({ script: 'test/kit/debian-guest-checks.ts', args: programs, programs });
  const lines = run.output.split(/\r?\n/).filter((line) => line.startsWith('{'));
  reports = new Map(
    lines.map((line) => JSON.parse(line) as GuestReport).map(({ title, failure }) => [title, failure]),
  );
  guestConsole = run.console;
});

function expectPassed({ title }: { title: string }): void {
  expect(reports.get(title), `on the guest's console:\n${guestConsole}`).toBeNull();
}

describe("on Debian's kernel, the dirty log soft-dirty", () => {
  test.each(softDirtyChecks)('$title', expectPassed);
});

describe("on Debian's kernel, the contract of dirty logs is broken by", () => {
  test.each(faultyLogChecks)('$title', expectPassed);
});

describe("on Debian's kernel, with cgroups of version 2", () => {
  test.each(cgroupChecks)('$title', expectPassed);
});
