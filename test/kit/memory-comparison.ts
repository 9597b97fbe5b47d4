import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PAGE_BYTES } from '../../src/base/units.ts';
import type { Roles } from './two-host-faults.ts';
import type { TwoHosts } from './two-hosts.ts';

const ASKED = 'comparison-asked';
const COPY = 'comparison';
const WAIT_MS = 5;
/** For the shadow to apply the last epoch. */
const LOOKS_MAX = 400;

/**
 * For `TwoHostsOptions.plants` of both hosts, so that memory can be compared: when it is asked for, the keeper of the VM
 * copies its memory in the moment of a cut, and makes no other cut until the question is taken back.
 */
export function comparablePlant(memoryFolder: string): string {
  const failpointUrl = new URL('../../src/base/failpoint.ts', import.meta.url).href;
  return `
    const { Failpoints } = await import(${JSON.stringify(failpointUrl)});
    const { existsSync, readdirSync, renameSync } = await import('node:fs');
    const { copyFile } = await import('node:fs/promises');
    const { setTimeout: delay } = await import('node:timers/promises');
    const { join } = await import('node:path');
    const folder = ${JSON.stringify(memoryFolder)};
    const [asked, copy] = [join(folder, '${ASKED}'), join(folder, '${COPY}')];
    const hit = Failpoints.prototype.hit;
    Failpoints.prototype.hit = function (name) {
      if (name === 'cut.before-resume' && existsSync(asked) && !existsSync(copy)) {
        const own = process.env.UNDERSTUDY_MEMORY_DIR;
        const memory = readdirSync(own, { recursive: true }).filter((file) => file.endsWith('.ram'));
        if (memory.length !== 1) throw new Error('the memory of ' + memory.length + ' QEMUs');
        // The keeper is heard meanwhile: on a busy machine its shadow would take over else.
        return copyFile(join(own, memory[0]), copy + '.new').then(() => renameSync(copy + '.new', copy));
      }
      if (name === 'cut.before-pause' && existsSync(copy))
        return (async () => { while (existsSync(copy)) await delay(${WAIT_MS}); })();
      return hit.call(this, name);
    };`;
}

/** The file that a QEMU has its guest's memory in. */
export function memoryFileOf(qemuPid: number): string {
  const command = readFileSync(`/proc/${qemuPid}/cmdline`, 'utf8');
  const path = /mem-path=([^,\0]+)/.exec(command)?.[1];
  if (path === undefined) throw new Error(`process ${qemuPid} has no memory in a file`);
  return path;
}

/**
 * Which pages of a VM, as they were at a cut, are others in its shadow when that has applied the epoch, and how many are no
 * zeros. `between` runs when they are equal, before they are compared once more.
 */
export async function compareMemory(
  hosts: TwoHosts,
  { there }: Roles,
  between: (shadowFile: string) => void = () => {},
): Promise<{ readonly differing: readonly number[]; readonly usedPages: number }> {
  const [asked, copy] = [join(hosts.memoryFolder, ASKED), join(hosts.memoryFolder, COPY)];
  const [pid] = hosts.qemuPids(there);
  if (pid === undefined) throw new Error(`there is no QEMU on ${there}`);
  const shadow = memoryFileOf(pid);
  writeFileSync(asked, '');
  try {
    await hosts.eventually('a copy of the memory', () => existsSync(copy));
    const atCut = readFileSync(copy);
    for (let look = 1; look < LOOKS_MAX; look += 1) {
      if (readFileSync(shadow).equals(atCut)) break;
      await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    }
    between(shadow);
    const found = readFileSync(shadow);
    const pages = Array.from({ length: atCut.length / PAGE_BYTES }, (_, page) => page);
    const pageOf = (memory: Buffer, page: number) =>
      memory.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    const zeros = Buffer.alloc(PAGE_BYTES);
    return {
      differing: pages.filter((page) => !pageOf(found, page).equals(pageOf(atCut, page))),
      usedPages: pages.filter((page) => !pageOf(atCut, page).equals(zeros)).length,
    };
  } finally {
    for (const path of [asked, copy]) rmSync(path, { force: true });
  }
}
