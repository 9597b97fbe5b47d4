import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { REPOSITORY, runTool } from '../kit/static-checks.ts';

interface Violation {
  readonly from: string;
  readonly to: string;
  readonly rule: { readonly name: string };
}

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'understudy-directions-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** What a house of these files violates, as `rule: from → to`. */
async function violationsOf(files: Record<string, string>): Promise<string[]> {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), text);
  }
  const roots = [...new Set(Object.keys(files).map((path) => path.split('/')[0] as string))];
  const config = join(REPOSITORY, '.dependency-cruiser.cjs');
  const { output } = await runTool(['depcruise', '--config', config, '--output-type', 'json', ...roots], {
    workingFolder: folder,
  });
  // The report is followed by advice that is not part of it.
  const report = JSON.parse(output.slice(output.indexOf('{'), output.lastIndexOf('\n}') + 2));
  const violations: Violation[] = report.summary.violations;
  return violations.map(({ rule, from, to }) => `${rule.name}: ${from} → ${to}`);
}

const EMPTY = 'export const nothing = 0;\n';

describe('import directions', () => {
  it.each<[string, Record<string, string>, string]>([
    [
      'an import from a later room',
      { 'src/base/a.ts': "import '../linux/b.ts';\n", 'src/linux/b.ts': EMPTY },
      'base-imports-no-later-room: src/base/a.ts → src/linux/b.ts',
    ],
    [
      'an import of a type only',
      {
        'src/epoch/a.ts': "import type { B } from '../net/b.ts';\nexport type A = B;\n",
        'src/net/b.ts': 'export type B = 1;\n',
      },
      'epoch-imports-no-later-room: src/epoch/a.ts → src/net/b.ts',
    ],
    [
      'a dynamic import inside of a function that uses `using`',
      {
        'src/config/a.ts':
          "export async function f(): Promise<void> {\n  await using x = await import('../api/b.ts');\n}\n",
        'src/api/b.ts': EMPTY,
      },
      'config-imports-no-later-room: src/config/a.ts → src/api/b.ts',
    ],
    [
      'an export from a later room',
      { 'src/memory/a.ts': "export * from '../shadow/b.ts';\n", 'src/shadow/b.ts': EMPTY },
      'memory-imports-no-later-room: src/memory/a.ts → src/shadow/b.ts',
    ],
    [
      'an import between rooms that do not know each other',
      { 'src/net/a.ts': "import '../qemu/b.ts';\n", 'src/qemu/b.ts': EMPTY },
      'net-knows-no-stranger: src/net/a.ts → src/qemu/b.ts',
    ],
    [
      'a test that imports from a later room',
      { 'src/linux/a.test.ts': "import '../memory/b.ts';\n", 'src/memory/b.ts': EMPTY },
      'linux-imports-no-later-room: src/linux/a.test.ts → src/memory/b.ts',
    ],
    [
      'an import of the keeper by the command line',
      { 'src/cli/a.ts': "import '../keeper/b.ts';\n", 'src/keeper/b.ts': EMPTY },
      'nobody-imports-keeper: src/cli/a.ts → src/keeper/b.ts',
    ],
    [
      'the demo guest being imported by what runs guests',
      { 'src/qemu/a.ts': "import '../../guest/b.ts';\n", 'guest/b.ts': EMPTY },
      'qemu-knows-no-stranger: src/qemu/a.ts → guest/b.ts',
    ],
    [
      'a circle inside of one room',
      {
        'src/base/a.ts': "import './b.ts';\nexport const a = 1;\n",
        'src/base/b.ts': "import './a.ts';\nexport const b = 1;\n",
      },
      'no-circle: src/base/a.ts → src/base/b.ts',
    ],
    [
      'a room that is not in the list',
      { 'src/attic/a.ts': "import '../base/b.ts';\n", 'src/base/b.ts': EMPTY },
      'unknown-room-imports-nothing: src/attic/a.ts → src/base/b.ts',
    ],
    [
      'an import from a room that is not in the list',
      { 'src/base/a.ts': "import '../attic/b.ts';\n", 'src/attic/b.ts': EMPTY },
      'no-unknown-room: src/base/a.ts → src/attic/b.ts',
    ],
    [
      'a product file that imports the test kit',
      { 'src/base/a.ts': "import '../../test/kit/b.ts';\n", 'test/kit/b.ts': EMPTY },
      'product-needs-no-tests: src/base/a.ts → test/kit/b.ts',
    ],
    [
      'an import that is not found',
      { 'src/base/a.ts': "import './gone.ts';\n" },
      'everything-resolves: src/base/a.ts → ./gone.ts',
    ],
  ])('are violated by %s', async (_, files, violation) => {
    expect(await violationsOf(files)).toContain(violation);
  });

  it('are violated by a product file that needs a development package', async () => {
    const files = {
      'package.json': '{"name": "planted", "devDependencies": {"tool": "1.0.0"}}',
      'node_modules/tool/package.json': '{"name": "tool", "version": "1.0.0", "exports": "./main.js"}',
      'node_modules/tool/main.js': EMPTY,
      'src/base/a.ts': "import 'tool';\n",
    };
    expect(await violationsOf(files)).toContain(
      'product-needs-no-development-package: src/base/a.ts → node_modules/tool/main.js',
    );
  });

  it('allow what goes up the list, and tests that use the kit', async () => {
    const files = {
      'src/base/a.ts': EMPTY,
      'src/linux/b.ts': "import type { nothing } from '../base/a.ts';\nexport type N = typeof nothing;\n",
      'src/keeper/c.ts': "import '../net/d.ts';\nimport '../qemu/e.ts';\n",
      'src/net/d.ts': "import '../linux/b.ts';\n",
      'src/qemu/e.ts': "import '../linux/b.ts';\n",
      'src/qemu/e.test.ts': "import '../../test/kit/f.ts';\n",
      'test/kit/f.ts': "import '../../src/keeper/c.ts';\n",
    };
    expect(await violationsOf(files)).toEqual([]);
  });
});
