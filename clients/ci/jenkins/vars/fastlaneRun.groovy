// Jenkins: a step of a shared library. docs/ci.md explains it.
//
//     fastlaneRun address: 'build:7020', url: 'http://build:10000', image: 'golang:1.23', script: 'go test ./...',
//         env: [CI: 'true'], label: [branch: env.BRANCH_NAME], timeout: '30m', retries: 1
//
// Each option of fastlane-tail is a key, with - as in 'stop-when-unwatched'.
def call(Map options) {
    def values = options.collectEntries { name, value ->
        [name, value instanceof Map ? value.collect { "${it.key}=${it.value}" }.join('\n') : value.toString()]
    }
    def variables = values.findAll { it.key != 'url' }.collect { name, value ->
        "FASTLANE_INPUT_${name.toUpperCase().replace('-', '_')}=${value}"
    }
    // Branches that run in parallel share a workspace.
    def directory = ".fastlane-${UUID.randomUUID()}"
    withEnv(variables + ["FASTLANE_URL=${values.url}", "FASTLANE_FILES=${directory}"]) {
        try {
            sh '''
                mkdir "$FASTLANE_FILES"
                curl -fsS -o "$FASTLANE_FILES/step" "$FASTLANE_URL/cli/step"
                exec sh "$FASTLANE_FILES/step" -options-from FASTLANE_INPUT -link-file "$FASTLANE_FILES/link"
            '''
        } finally {
            if (fileExists("${directory}/link")) {
                def link = readFile("${directory}/link").trim()
                currentBuild.description = [currentBuild.description, link].findAll().join('\n')
            }
            dir(directory) { deleteDir() }
        }
    }
}
