import { formatBytes } from '../base/units.ts';
import type { FailoverReport } from '../control/failover-report.ts';
import { EXIT_CODES } from './exit-codes.ts';
import type { Output } from './output.ts';
import { connectTo } from './vm-connection.ts';

/** Tries the shadow out on a copy. Exit code 1 when it would not come up. */
export async function testFailover(name: string, out: Output): Promise<number> {
  using control = await connectTo(name);
  out.progress(`bringing a copy of the shadow of ${name} up`);
  const report = await control.testFailover();
  out.result({ name, ...report }, () => reportText(name, report));
  return report.ok ? EXIT_CODES.ok.code : EXIT_CODES.failed.code;
}

function reportText(name: string, report: FailoverReport): string {
  const { ok, reason, epoch, agentAnswered, memoryBytes } = report;
  if (!ok) return `the shadow of ${name} would not come up: ${reason?.message} (${reason?.code})`;
  const agent = agentAnswered === null ? 'no agent to ask' : 'its agent answered';
  return [
    `the shadow of ${name} would come up, as of epoch ${epoch}: ${agent}`,
    `  copied   ${formatBytes(memoryBytes ?? 0)} in ${milliseconds(report.copyMs)}; epochs waited ${milliseconds(report.heldMs)}`,
    `  loaded   in ${milliseconds(report.loadMs)}`,
    `  ran      for ${milliseconds(report.runningMs)}`,
  ].join('\n');
}

function milliseconds(ms: number | null): string {
  return ms === null ? '-' : `${ms.toFixed(1)} ms`;
}
