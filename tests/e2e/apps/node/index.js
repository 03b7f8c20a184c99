// Says who it runs as, and what a dependency of a dependency makes of its argument.
const debug = require('debug');
console.log(process.getuid(), debug.humanize(Number(process.argv[2] || 60000)));
