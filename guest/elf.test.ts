import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readElf } from './elf.ts';
import { GuestError } from './guest-error.ts';

const folder = mkdtempSync(join(tmpdir(), 'elf-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** `gcc` with these arguments, on a source of these lines. */
function compile(name: string, args: string[], source: string): Buffer {
  writeFileSync(join(folder, `${name}.c`), source);
  execFileSync('gcc', ['-o', join(folder, name), join(folder, `${name}.c`), ...args], { stdio: 'pipe' });
  return readFileSync(join(folder, name));
}

let dynamic: Buffer;
beforeAll(() => {
  dynamic = compile('dynamic', ['-Wl,--no-as-needed', '-lm'], 'int main(void) { return 0; }\n');
});

describe('reading an ELF file', () => {
  it('names the libraries and the loader of a dynamic program', () => {
    expect(readElf(dynamic, 'dynamic')).toEqual({
      neededLibraries: ['libm.so.6', 'libc.so.6'],
      interpreter: '/lib64/ld-linux-x86-64.so.2',
      moduleDependencies: [],
    });
  });

  it('names none of a static program', () => {
    const facts = readElf(compile('static', ['-static'], 'int main(void) { return 0; }\n'), 'static');
    expect(facts).toEqual({ neededLibraries: [], interpreter: undefined, moduleDependencies: [] });
  });

  it('names what a kernel module depends on', () => {
    const source = `
      static const char info[] __attribute__((used, section(".modinfo"))) = "license=GPL\\0depends=virtio,net_failover";
    `;
    const facts = readElf(compile('module.ko', ['-c'], source), 'module.ko');
    expect(facts.moduleDependencies).toEqual(['virtio', 'net_failover']);
  });

  it('refuses what is no ELF file, with the name', () => {
    expect(() => readElf(Buffer.from('#!/bin/sh\n'.repeat(20)), 'script')).toThrow(/^script is no ELF file/);
  });

  it('ends with an answer or a clear error on a file that is cut off or damaged', () => {
    const damage = fc.record({
      lengthBytes: fc.nat({ max: dynamic.length }),
      flips: fc.array(fc.record({ at: fc.nat({ max: 4096 }), value: fc.nat({ max: 255 }) }), {
        maxLength: 4,
      }),
    });
    fc.assert(
      fc.property(damage, ({ lengthBytes, flips }) => {
        const bytes = Buffer.from(dynamic.subarray(0, lengthBytes));
        for (const { at, value } of flips) if (at < bytes.length) bytes[at] = value;
        try {
          readElf(bytes, 'damaged');
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(GuestError);
        }
      }),
      { numRuns: 500 },
    );
  });
});
