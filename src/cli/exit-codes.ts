import { UnderstudyError } from '../base/errors.ts';

/** What the exit codes of `understudy` mean. docs/cli.md has the same table, and a test compares. */
export const EXIT_CODES = {
  ok: { code: 0, meaning: 'done' },
  failed: { code: 1, meaning: 'it was tried and failed' },
  usage: { code: 2, meaning: 'wrong command, option or VM specification; nothing was tried' },
  notFound: { code: 3, meaning: 'there is no such VM, or its keeper was lost' },
  impossible: { code: 4, meaning: 'not possible on this machine: something is missing or not permitted' },
  interrupted: { code: 130, meaning: 'interrupted by Ctrl-C (SIGINT)' },
  terminated: { code: 143, meaning: 'ended by SIGTERM or SIGHUP' },
} as const;

const BY_ERROR_CODE: Readonly<Record<string, keyof typeof EXIT_CODES>> = {
  CLI_USAGE: 'usage',
  CLI_FILE_EXISTS: 'usage',
  PKI_NAME_TAKEN: 'usage',
  PKI_NAME_REFUSED: 'usage',
  CONFIG_INVALID: 'usage',
  CONFIG_NOT_FOUND: 'usage',
  CONFIG_FILE_MISSING: 'usage',
  CONFIG_UNPROTECTABLE: 'usage',
  QEMU_ARGUMENT_REFUSED: 'usage',
  QEMU_UNPROTECTABLE: 'usage',
  KEEPER_HOST_UNKNOWN: 'usage',
  KEEPER_SITE_REFUSED: 'usage',
  KEEPER_NOT_RUNNING: 'notFound',
  KEEPER_LOST: 'notFound',
  HOST_VM_UNKNOWN: 'notFound',
  HOST_NO_SAVED_STATE: 'notFound',
  HOST_NO_SERIES: 'notFound',
  HOST_NO_TELEMETRY: 'notFound',
  HOST_TENANT_UNKNOWN: 'notFound',
  CLI_TENANT_UNKNOWN: 'notFound',
  HOST_POLICY_UNKNOWN: 'notFound',
  KEEPER_NO_SNAPSHOT: 'notFound',
  SNAPSHOT_MISSING: 'notFound',
  SNAPSHOT_KEY_REFUSED: 'usage',
  SNAPSHOT_STORE_REFUSED: 'usage',
  HOST_NAME_FIXED: 'usage',
  HOST_BACKUP_EXISTS: 'usage',
  API_UNREACHABLE: 'impossible',
  BLOCK_TOOL_MISSING: 'impossible',
  CLI_NODE_TOO_OLD: 'impossible',
  CLI_ROOT_NEEDED: 'impossible',
  CLI_MACHINE_UNFIT: 'impossible',
  DEMO_NETWORK_FAILED: 'impossible',
  GUEST_TOOL_MISSING: 'impossible',
  KEEPER_DIRECTORY_REFUSED: 'impossible',
  MEMORY_COMPILER_MISSING: 'impossible',
  MEMORY_COMPILE_FAILED: 'impossible',
  MEMORY_LIBRARY_PATH: 'impossible',
  MEMORY_LOG_UNAVAILABLE: 'impossible',
  MEMORY_NO_HANDSHAKE: 'impossible',
  MEMORY_NO_ROOM: 'impossible',
  NET_PASST_MISSING: 'impossible',
  QEMU_KVM_UNUSABLE: 'impossible',
  QEMU_MISSING: 'impossible',
  QEMU_TOO_OLD: 'impossible',
  QEMU_USER_UNKNOWN: 'impossible',
};

export function exitCodeOf(thrown: unknown): number {
  if (!(thrown instanceof UnderstudyError)) return EXIT_CODES.failed.code;
  if (thrown.code === 'CLI_INTERRUPTED') {
    return thrown.facts.signal === 'SIGINT' ? EXIT_CODES.interrupted.code : EXIT_CODES.terminated.code;
  }
  return EXIT_CODES[BY_ERROR_CODE[thrown.code] ?? 'failed'].code;
}

export function exitCodesText(): string {
  const rows = Object.values(EXIT_CODES).map(({ code, meaning }) => `  ${String(code).padEnd(5)}${meaning}`);
  return `Exit codes:\n${rows.join('\n')}\n`;
}
