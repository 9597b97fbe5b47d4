/** What is handed out to VMs. Amounts are whole numbers, so that sums are exact. */
export const RESOURCES = {
  cpuMillicores: 'CPU time: a thousandth of one core',
  memoryBytes: 'guest memory that the host provides',
  diskBytesPerSecond: 'bytes read and written per second, over all disks',
  netBytesPerSecond: 'bytes received and sent per second, over all network cards',
} as const;

export type Resource = keyof typeof RESOURCES;
