<?php
// Loads all classes of generated code: php load_generated.php DIRECTORY. A warning or a deprecation ends it.

set_error_handler(function ($level, $message, $file, $line) {
    fwrite(STDERR, "$message at $file:$line\n");
    exit(1);
});

$roots = [$argv[1], '/usr/share/php'];
spl_autoload_register(function ($name) use ($roots) {
    foreach ($roots as $root) {
        $file = "$root/" . strtr($name, '\\', '/') . '.php';
        if (is_file($file)) {
            require_once $file;
            return;
        }
    }
});

foreach (new RecursiveIteratorIterator(new RecursiveDirectoryIterator($argv[1], FilesystemIterator::SKIP_DOTS)) as $file) {
    // Old names of nested classes are deprecated by themselves; clients of services need gRPC, which PHP has from elsewhere.
    if (!preg_match('/_\w+\.php$|Client\.php$/', $file)) {
        require_once $file;
    }
}

$sent = new Fastlane\V1\JobSpec(['image' => 'busybox', 'timeout' => new Google\Protobuf\Duration(['seconds' => 90])]);
$received = new Fastlane\V1\JobSpec();
$received->mergeFromString($sent->serializeToString());
echo $received->getImage(), ' ', $received->getTimeout()->getSeconds(), "\n";
