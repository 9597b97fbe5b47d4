import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { expect, it } from 'vitest';
import { setTcpUserTimeout, tcpUserTimeoutMs } from './tcp.ts';

it('the time that the kernel waits for acknowledgements is set on a connection', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
  await once(socket, 'connect');
  expect(tcpUserTimeoutMs(socket)).toBe(0);
  setTcpUserTimeout(socket, 1234);
  expect(tcpUserTimeoutMs(socket)).toBe(1234);
  socket.destroy();
  await once(socket, 'close');
  // A connection may end at any time: nothing is left to set.
  setTcpUserTimeout(socket, 1);
  expect(tcpUserTimeoutMs(socket)).toBeUndefined();
  server.close();
  await once(server, 'close');
});
