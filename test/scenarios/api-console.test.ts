import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ApiClient } from '../../src/api/api-client.ts';
import { ApiServer } from '../../src/api/api-server.ts';
import { MemoryService } from '../../src/api/memory-service.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { silentLogger as log } from '../../src/base/logger.ts';
import { ControlClient } from '../../src/control/control-client.ts';
import { ControlServer } from '../../src/control/control-server.ts';
import type { UnsafeLink } from '../../src/net/guest-link.ts';
import { TestVm, until } from '../kit/test-vm.ts';

let owned: AsyncDisposableStack;
beforeEach(() => {
  owned = new AsyncDisposableStack();
});
afterEach(() => owned.disposeAsync());

/** What a client of the API sees of the VM's console, through the keeper's control socket and the host's API. */
async function consoleOf(vm: TestVm): Promise<{ seen: () => string; type: (line: string) => void }> {
  const folder = mkdtempSync(join(tmpdir(), 'us-console-'));
  owned.defer(() => rmSync(folder, { recursive: true }));
  const keeperSocket = join(folder, 'keeper.sock');
  owned.use(await ControlServer.listen(keeperSocket, { control: vm.keeper, clock, log }));
  const service = new MemoryService();
  // The VM is the keeper's alone: no host has it declared.
  service.ensureWithin = () => {};
  service.openConsole = async (name) => {
    const control = await ControlClient.connect(keeperSocket, { vm: name, clock });
    return control.console();
  };
  const socketPath = join(folder, 'api.sock');
  owned.use(await ApiServer.listen({ service, socketPath, clock, log }));
  const console = await new ApiClient({ socketPath, clock }).console('any');
  owned.defer(() => void console.destroy());
  let seen = '';
  console.on('data', (bytes: Buffer) => {
    seen += bytes.toString('latin1');
  });
  await until(() => /understudy-guest: ready[\s\S]*\/ # /.test(seen));
  return { seen: () => seen, type: (line) => void console.write(`${line}\n`) };
}

async function start(link: UnsafeLink = {}): Promise<TestVm> {
  return owned.use(await TestVm.start({ clients: 0, unsafe: { link } }));
}

const COMMAND = 'n=1; echo sum""-$((n+1));';
/** The guest has echoed the command and answered it. */
const SAID_BYTES = COMMAND.length + 'sum-2;'.length;

describe('what a guest says on its console in an epoch that is not committed', () => {
  it('is not seen over the API, but what the shadow says that did it again', async () => {
    const vm = await start();
    const { seen, type } = await consoleOf(vm);
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    const before = seen();
    type(COMMAND);
    await until(() => vm.link('console').heldBytes > SAID_BYTES);
    // Whatever were on its way would be here by the time that another client has joined and seen all.
    expect((await consoleOf(vm)).seen()).not.toContain('sum');
    expect(seen()).toBe(before);
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    cut.release();
    await promoted;
    await until(() => seen().includes('sum-2'));
    expect(seen().match(/sum-2/g)).toHaveLength(1);
  });

  it('without the output gate is seen before it is committed', async () => {
    const vm = await start({ releaseUncommitted: true });
    const { seen, type } = await consoleOf(vm);
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    type(COMMAND);
    await until(() => seen().includes('sum-2'));
    cut.release();
  });
});
