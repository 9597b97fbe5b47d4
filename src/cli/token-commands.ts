import type { Role } from '../api/principal.ts';
import type { Token } from '../api/resources.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { type Output, table } from './output.ts';

const PAGE_TOKENS = 1000;

interface CreateOptions {
  readonly role: Role;
  readonly tenant?: string | undefined;
  readonly expiresInSeconds: number | null;
}

/** Prints the secret once; nobody can be asked for it again. */
export async function createToken(
  name: string,
  { tenant, ...options }: CreateOptions,
  out: Output,
): Promise<number> {
  const made = await hostClient().call('createToken', {
    body: { name, ...options, ...(tenant !== undefined && { tenant }) },
  });
  out.result(made, () =>
    [
      made.token,
      '',
      `Token ${made.id} of ${made.name}, role ${made.role}${made.tenant === null ? '' : ` of ${made.tenant}`}, valid until ${made.expiresAt ?? 'it is revoked'}.`,
      'Keep it in a file of mode 600: it is not shown again. `understudy token revoke` ends it.',
    ].join('\n'),
  );
  return EXIT_CODES.ok.code;
}

export async function listTokens(out: Output): Promise<number> {
  const client = hostClient();
  const tokens: Token[] = [];
  for (let after: string | undefined; ; ) {
    const page = await client.call('listTokens', { query: { limit: PAGE_TOKENS, ...(after && { after }) } });
    tokens.push(...page.tokens);
    if (page.next === null) break;
    after = page.next;
  }
  const rows = tokens.map(({ id, name, role, tenant, createdAt, expiresAt }) => [
    id,
    name,
    role,
    tenant ?? '-',
    createdAt,
    expiresAt ?? 'never',
  ]);
  out.result({ tokens }, () =>
    rows.length === 0
      ? 'There are no tokens.'
      : table([['ID', 'NAME', 'ROLE', 'TENANT', 'CREATED', 'EXPIRES'], ...rows]),
  );
  return EXIT_CODES.ok.code;
}

export async function revokeToken(id: string, out: Output): Promise<number> {
  await hostClient().call('revokeToken', { params: { id } });
  out.result({ id, revoked: true }, () => `${id} revoked`);
  return EXIT_CODES.ok.code;
}
