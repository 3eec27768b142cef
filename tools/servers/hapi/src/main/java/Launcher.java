import ca.uhn.fhir.batch2.jobs.config.Batch2JobsConfig;
import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.IValidationSupport;
import ca.uhn.fhir.jpa.api.config.JpaStorageSettings;
import ca.uhn.fhir.jpa.api.config.ThreadPoolFactoryConfig;
import ca.uhn.fhir.jpa.api.dao.IFhirSystemDao;
import ca.uhn.fhir.jpa.batch2.JpaBatch2Config;
import ca.uhn.fhir.jpa.config.HapiJpaConfig;
import ca.uhn.fhir.jpa.config.r4.JpaR4Config;
import ca.uhn.fhir.jpa.config.util.HapiEntityManagerFactoryUtil;
import ca.uhn.fhir.jpa.config.util.ResourceCountCacheUtil;
import ca.uhn.fhir.jpa.model.config.PartitionSettings;
import ca.uhn.fhir.jpa.model.config.SubscriptionSettings;
import ca.uhn.fhir.jpa.model.dialect.HapiFhirH2Dialect;
import ca.uhn.fhir.jpa.provider.IJpaSystemProvider;
import ca.uhn.fhir.jpa.provider.JpaCapabilityStatementProvider;
import ca.uhn.fhir.jpa.search.DatabaseBackedPagingProvider;
import ca.uhn.fhir.jpa.subscription.channel.config.SubscriptionChannelConfig;
import ca.uhn.fhir.jpa.util.ResourceCountCache;
import ca.uhn.fhir.rest.api.EncodingEnum;
import ca.uhn.fhir.rest.server.IncomingRequestAddressStrategy;
import ca.uhn.fhir.rest.server.RestfulServer;
import ca.uhn.fhir.rest.server.provider.ResourceProviderFactory;
import ca.uhn.fhir.rest.server.util.ISearchParamRegistry;
import jakarta.persistence.EntityManagerFactory;
import java.net.InetSocketAddress;
import java.util.Map;
import java.util.Properties;
import javax.sql.DataSource;
import org.apache.commons.dbcp2.BasicDataSource;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.springframework.beans.factory.config.ConfigurableListableBeanFactory;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.context.annotation.Import;
import org.springframework.context.annotation.Primary;
import org.springframework.orm.jpa.JpaTransactionManager;
import org.springframework.orm.jpa.LocalContainerEntityManagerFactoryBean;

/** HAPI FHIR JPA, R4, in memory, referential integrity on, at 127.0.0.1. The one argument is the port (0: any). */
public class Launcher {

    public static void main(String[] arguments) throws Exception {
        var beans = new AnnotationConfigApplicationContext(Wiring.class);
        var jetty = new Server(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])));
        var servlets = new ServletContextHandler("/");
        servlets.addServlet(new ServletHolder(beans.getBean(RestfulServer.class)), "/fhir/*");
        jetty.setHandler(servlets);
        jetty.start();
        int port = ((ServerConnector) jetty.getConnectors()[0]).getLocalPort();
        System.out.println("listening http://127.0.0.1:" + port + "/fhir");
        jetty.join();
    }

    @Configuration
    @Import({JpaR4Config.class, HapiJpaConfig.class, JpaBatch2Config.class, Batch2JobsConfig.class,
            SubscriptionChannelConfig.class, ThreadPoolFactoryConfig.class})
    public static class Wiring {

        @Bean
        public JpaStorageSettings storage() {
            var storage = new JpaStorageSettings();
            storage.setResourceServerIdStrategy(JpaStorageSettings.IdStrategyEnum.UUID);
            storage.setResourceClientIdStrategy(JpaStorageSettings.ClientIdStrategyEnum.ANY);
            storage.setIndexMissingFields(JpaStorageSettings.IndexEnabledEnum.ENABLED);
            storage.setAllowContainsSearches(true);
            storage.setEnforceReferentialIntegrityOnWrite(true);
            storage.setEnforceReferentialIntegrityOnDelete(true);
            return storage;
        }

        @Bean
        public PartitionSettings partitions() {
            return new PartitionSettings();
        }

        @Bean
        public SubscriptionSettings subscriptions() {
            return new SubscriptionSettings();
        }

        @Bean
        public DataSource database() {
            var pool = new BasicDataSource();
            pool.setUrl("jdbc:h2:mem:tests;DB_CLOSE_DELAY=-1");
            pool.setUsername("sa");
            pool.setPassword("");
            pool.setMaxTotal(24);
            return pool;
        }

        @Bean
        @Primary
        public LocalContainerEntityManagerFactoryBean entityManagerFactory(
                DataSource database, ConfigurableListableBeanFactory beans, FhirContext fhir, JpaStorageSettings storage) {
            var factory = HapiEntityManagerFactoryUtil.newEntityManagerFactory(beans, fhir, storage);
            factory.setPersistenceUnitName("HAPI_PU");
            factory.setDataSource(database);
            var hibernate = new Properties();
            hibernate.putAll(Map.of(
                    "hibernate.dialect", HapiFhirH2Dialect.class.getName(),
                    "hibernate.hbm2ddl.auto", "update",
                    "hibernate.search.enabled", "false"));
            factory.setJpaProperties(hibernate);
            return factory;
        }

        @Bean
        @Primary
        public JpaTransactionManager transactionManager(EntityManagerFactory factory) {
            return new JpaTransactionManager(factory);
        }

        @Bean(name = "myResourceCountsCache")
        public ResourceCountCache counts(IFhirSystemDao<?, ?> system) {
            return ResourceCountCacheUtil.newResourceCountCache(system);
        }

        @Bean
        public RestfulServer fhirServer(
                FhirContext fhir, IFhirSystemDao<?, ?> system, IJpaSystemProvider whole, ResourceProviderFactory types,
                JpaStorageSettings storage, ISearchParamRegistry parameters, IValidationSupport validation,
                DatabaseBackedPagingProvider pages) {
            var server = new RestfulServer(fhir);
            server.registerProviders(types.createProviders());
            server.registerProvider(whole);
            server.setServerConformanceProvider(
                    new JpaCapabilityStatementProvider(server, system, storage, parameters, validation));
            server.setServerAddressStrategy(new IncomingRequestAddressStrategy());
            server.setDefaultResponseEncoding(EncodingEnum.JSON);
            pages.setDefaultPageSize(20);
            pages.setMaximumPageSize(500);
            server.setPagingProvider(pages);
            return server;
        }
    }
}
