import type { Duplex } from 'node:stream';
import { ApiError } from '../api/api-error.ts';
import { hostClient } from './host-connection.ts';
import { connectTo } from './vm-connection.ts';

/** Of a host that is not there, or does not know the VM, or is too old to offer consoles. */
const NOT_OF_THE_HOST = new Set<string>([
  'API_UNREACHABLE',
  'API_NO_ANSWER',
  'API_NOT_FOUND',
  'HOST_VM_UNKNOWN',
]);

/**
 * The serial console of a VM: through the host where the VM is declared, else straight from its keeper, which only the
 * user that started it may reach. @throws what the host or the keeper says
 */
export async function openConsole(name: string): Promise<Duplex> {
  try {
    return await hostClient().console(name);
  } catch (thrown) {
    if (!(thrown instanceof ApiError && NOT_OF_THE_HOST.has(thrown.code))) throw thrown;
  }
  const control = await connectTo(name);
  try {
    return await control.console();
  } catch (thrown) {
    control[Symbol.dispose]();
    throw thrown;
  }
}
