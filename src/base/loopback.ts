import { isIP } from 'node:net';

/** Whether a host of a URL is this machine whatever anybody says: by number, as `localhost` is a name like others. */
export function isLoopbackHost(hostname: string): boolean {
  return hostname === '[::1]' || (isIP(hostname) === 4 && hostname.startsWith('127.'));
}
