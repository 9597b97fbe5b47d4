/**
 * What stands for where a connection comes from when something is counted: an IPv4 address, or the /64 of an IPv6 one, of
 * which whoever has one address has all.
 */
export function sourceNetwork(address = ''): string {
  // An IPv4 address, perhaps as one of IPv6: `::ffff:10.0.0.1`.
  if (address.includes('.')) return address.slice(address.lastIndexOf(':') + 1);
  if (!address.includes(':')) return address;
  const [head = '', tail = ''] = (address.split('%')[0] ?? '').split('::');
  const groupsOf = (part: string) => (part === '' ? [] : part.split(':'));
  const [before, after] = [groupsOf(head), groupsOf(tail)];
  const groups = [...before, ...Array(Math.max(0, 8 - before.length - after.length)).fill('0'), ...after];
  return `${groups
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(':')}::/64`;
}
