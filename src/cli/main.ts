/** The `understudy` command. Everything else is imported later, so that an old Node gets as far as the message. */
const NODE_MAJOR_MIN = 24;
const EXIT_IMPOSSIBLE_HERE = 4;

if (Number.parseInt(process.versions.node, 10) < NODE_MAJOR_MIN) {
  console.error(
    `error CLI_NODE_TOO_OLD: Understudy needs Node ${NODE_MAJOR_MIN}, this is ${process.versions.node}`,
  );
  console.error(
    'hint: Start it with bin/understudy or ./run understudy: they use the Node of the npm package.',
  );
  process.exitCode = EXIT_IMPOSSIBLE_HERE;
} else {
  const { main } = await import('./program.ts');
  process.exitCode = await main(process.argv.slice(2));
}
