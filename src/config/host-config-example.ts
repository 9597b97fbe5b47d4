/**
 * Every key of the configuration of a host, with its default where it has one. Shown by `understudy host --help`;
 * `understudy install` writes it with all keys commented out.
 */
export const HOST_CONFIG_EXAMPLE = `\
state: /var/lib/understudy          # what survives a reboot: declared VMs, events
runDirectory: /run/understudy       # sockets and logs of VMs
memoryDirectory: /dev/shm           # guest memory: a file system in memory
cacheDirectory: /var/cache/understudy   # what can be made again: preload library, probe answers
socket:
  path: /run/understudy/host.sock   # the API for local administrators
  group: understudy                 # who may open it besides root
  mode: "0660"                      # 0660, or 0600 for root alone
listen:                             # the API over TCP, with TLS only; nothing listens by default
  address: 127.0.0.1:7443           # 0.0.0.0:7443 for all addresses, [::1]:7443 for one of IPv6
  certificate: /etc/understudy/host.crt
  key: /etc/understudy/host.key
  clientCa: /etc/understudy/clients.crt   # may be left out: then only tokens open it
log:
  level: info                       # debug | info | warn | error
keepers:
  start: auto                       # auto: units where systemd runs the host | direct | systemd
events:
  retentionDays: 365                # older events are forgotten
  retentionMax: 100000              # and the oldest where there are more than this
reconcile:
  intervalMs: 5000                  # the host looks at its VMs at least so often
telemetry:
  store: victoriametrics            # by default sqlite, in the state directory, which needs none of the next three
  url: https://metrics.example:8428
  ca: /etc/understudy/metrics-ca.crt
  credentials: {kind: bearer, file: /etc/understudy/metrics.token}   # or basic: the file has user:password
  retention:
    1s: 1d                          # samples as they came
    1m: 14d
    1h: 400d
  maxBytes: 2GiB                    # of the store; with victoriametrics of what waits for it
`;

/** The example as a file that changes nothing until somebody takes a # away. */
export function commentedHostConfig(): string {
  const head =
    '# Configuration of the Understudy host. All values shown are the defaults, but for those of listen,\n' +
    '# and of a telemetry store that is elsewhere.\n' +
    '# Explained in docs/host-configuration.md. After a change: systemctl reload understudy-host; the\n' +
    '# log says what needs a restart. After a change of a directory: understudy install, then a restart.\n\n';
  return head + HOST_CONFIG_EXAMPLE.replaceAll(/^/gm, '#').replace(/#$/, '');
}
