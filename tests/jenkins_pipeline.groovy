// The steps of a Jenkins pipeline that fastlaneRun takes, for a test. Arguments: the file of the step, a file for the
// build's description, then the step's options as NAME=VALUE; `env` has one variable.
class Failed extends Exception {
    int status
}

environment = System.getenv().collectEntries { name, value -> [name, value] }
currentBuild = [description: null]
directory = '.'

steps = [
    currentBuild: currentBuild,
    withEnv: { List more, Closure body ->
        def before = environment
        environment = before + more.collectEntries { it.toString().split('=', 2) as List }
        try {
            body()
        } finally {
            environment = before
        }
    },
    sh: { String text ->
        def script = File.createTempFile('step', '.sh')
        script.text = text
        def builder = new ProcessBuilder('sh', '-xe', script.path).inheritIO()
        builder.environment().clear()
        builder.environment().putAll(environment.collectEntries { name, value -> [name.toString(), value.toString()] })
        def status = builder.start().waitFor()
        script.delete()
        if (status != 0) {
            throw new Failed(status: status)
        }
    },
    fileExists: { path -> new File(path.toString()).exists() },
    readFile: { path -> new File(path.toString()).text },
    dir: { path, Closure body ->
        directory = path.toString()
        body()
    },
    deleteDir: { -> new File(directory).deleteDir() },
]

def (step, description) = args as List
def options = args.drop(2).collectEntries { it.split('=', 2) as List }
options.env = [options.env.split('=', 2) as List].collectEntries()
int status = 0
try {
    new GroovyShell(new Binding(steps)).parse(new File(step)).call(options)
} catch (Failed failed) {
    status = failed.status
}
new File(description).text = currentBuild.description ?: ''
System.exit(status)
